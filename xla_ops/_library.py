"""Finds, checks and loads the native libraries."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import jaxlib

BUILD_COMMAND = {
    "cpu": "pip install --force-reinstall --no-deps .",
    "cuda": "EET_JAX_CUDA=1 pip install --force-reinstall --no-deps .",
}

libraries: dict[str, Any] = {}
"""The loaded library of each platform, "cpu" and "cuda"."""

problems: dict[str, str] = {}
"""Why a platform has no library, with the command that mends it."""


def ffi_api_version() -> tuple[int, int]:
    """The FFI API version of the installed jaxlib, read from its header."""
    header = Path(jaxlib.__file__).parent / "include" / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text()
    found = [re.search(rf"define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    major, minor = (int(match[1]) for match in found if match)
    return major, minor


def _check(library: Any, native: Any) -> None:
    """Raises ImportError if ``library`` does not belong to this module and this jaxlib."""
    if library.abi_version != native.abi_version:
        raise ImportError(f"its ABI version is {library.abi_version}, not {native.abi_version}")
    if library.source_hash != native.source_hash:
        raise ImportError("it was built from other sources than the Python module")
    built, installed = library.ffi_api_version, ffi_api_version()
    if built[0] != installed[0] or built > installed:
        # A handler of a newer API would stop the whole backend.
        raise ImportError(f"it was built for XLA FFI API {built}, jaxlib has {installed}")


def native() -> Any:
    """The Python module of the native part.

    Raises:
        RuntimeError: if it does not load, with the reason and the build command.
    """
    try:
        return importlib.import_module("xla_ops._native")
    except ImportError as error:
        raise RuntimeError(
            f"the native module of eet_jax does not load ({error}); "
            f"build it with `{BUILD_COMMAND['cpu']}` in the source directory"
        ) from error


def _load(platform: str, name: str) -> None:
    """Loads a library, or notes why that does not work."""
    path = Path(__file__).parent / "lib" / name
    if not path.exists():
        problems[platform] = f"{name} was not built"
        return
    try:
        library = native().Library(str(path))
        _check(library, native())
    except (ImportError, RuntimeError, KeyError, OSError, ValueError) as error:
        problems[platform] = f"{name} is unusable: {error}"
        return
    libraries[platform] = library


def cpu_variant() -> str:
    """The build of the CPU library: the processor's fastest, or the one that EET_JAX_CPU names.

    Raises:
        ValueError: if this processor does not run it.
        RuntimeError: without the native module.
    """
    variants = native().cpu_variants()
    variant = os.environ.get("EET_JAX_CPU", variants[0])
    if variant not in variants:
        raise ValueError(f"EET_JAX_CPU must be one of {', '.join(variants)}, got {variant!r}")
    return str(variant)


def _load_all() -> None:
    try:
        native()
    except RuntimeError as error:
        problems.update({platform: str(error) for platform in BUILD_COMMAND})
        return
    try:
        variant = cpu_variant()
    except ValueError as error:
        problems["cpu"] = str(error)
    else:
        _load("cpu", "libeet_cpu.so" if variant == "baseline" else f"libeet_cpu_{variant}.so")
    _load("cuda", "libeet_cuda.so")


def require(platform: str) -> Any:
    """The library of ``platform``.

    Raises:
        RuntimeError: if there is none, with the reason and the build command.
    """
    if platform not in libraries:
        raise RuntimeError(
            f"eet_jax has no native library for {platform}: {problems[platform]}; "
            f"build it with `{BUILD_COMMAND[platform]}` in the source directory"
        )
    return libraries[platform]


_load_all()
