"""What is installed, what works, and the command that mends what does not."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import jax

from xla_ops import _library, decode_step_problem

PACKAGES = ("eet-jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "transformers", "jinja2",
            "matplotlib")  # fmt: skip

CUBLASLT = "libcublasLt.so.13"
"""What the CUDA library loads when it first multiplies."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Versions, libraries and devices as text, which of the devices run the persistent decode step,
    and problems with the command that mends each."""

    versions: dict[str, str]
    libraries: dict[str, str]
    devices: list[str]
    persistent_decode: dict[str, str]
    problems: list[str]

    @property
    def healthy(self) -> bool:
        """Whether every device that JAX sees can be used."""
        return not self.problems


def doctor() -> Report:
    """Looks at this installation; starts JAX's backend, and reports it if that fails."""
    devices, problems = _devices()
    return Report(
        versions=_versions(),
        libraries={name: _library_status(name) for name in ("cpu", "cuda")},
        devices=[f"{device} ({device.device_kind})" for device in devices],
        persistent_decode={str(device): _persistent_status(device) for device in devices},
        problems=[*problems, *_problems(devices)],
    )


def _devices() -> tuple[list[Any], list[str]]:
    """What JAX sees, or what it raised instead."""
    try:
        return jax.devices(), []
    except Exception as error:  # whatever a plugin raises is what doctor is asked for
        return [], [f"JAX finds no devices: {type(error).__name__}: {error}"]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _library_status(name: str) -> str:
    if name not in _library.libraries:
        return f"missing: {_library.problems[name]}"
    library = _library.libraries[name]
    major, minor = library.ffi_api_version
    variant = f", {_library.cpu_variant()}" if name == "cpu" else ""
    return f"loaded (sources {library.source_hash}, XLA FFI {major}.{minor}{variant})"


def _persistent_status(device: Any) -> str:
    problem = decode_step_problem(device)
    return "available" if problem is None else f"not available: {problem}"


def _problems(devices: list[Any]) -> list[str]:
    platforms = {"cuda" if device.platform == "gpu" else device.platform for device in devices}
    problems = [
        f"{name}: {_library.problems[name]}; run `{_library.BUILD_COMMAND[name]}`"
        for name in ("cpu", "cuda")
        if name not in _library.libraries and (name == "cpu" or name in platforms)
    ]
    if "cuda" not in platforms and _loads("libcuda.so.1"):
        problems.append(
            "an NVIDIA driver is here, but JAX sees no GPU; run `pip install 'jax[cuda13]'`"
        )
    if "cuda" in _library.libraries and not _finds_cublaslt():
        problems.append(
            f"cuda: {CUBLASLT} cannot be loaded; run `pip install 'nvidia-cublas>=13,<14'`"
        )
    return problems


def _finds_cublaslt() -> bool:
    """Whether the CUDA library will: by the loader's own ways, or beside it in the wheel."""
    wheel = Path(_library.__file__).parent.parent / "nvidia" / "cu13" / "lib" / CUBLASLT
    return _loads(CUBLASLT) or _loads(str(wheel))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
