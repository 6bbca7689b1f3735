"""A pytest plugin that keeps JAX on the CPU and runs the ops' CUDA kernels all the same, so that
compute-sanitizer has nothing but our kernels to look at:

    PYTHONPATH=.:tests python -m pytest -p cuda_on_cpu.plugin tests/test_rms_norm.py
"""

from __future__ import annotations

import ctypes
import fnmatch
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest

import build_cuda

UNFIT = {
    "test_is_for_cuda_alone": "here all ops are for both platforms",
    "test_lowers_to_calls?cpu*": "here all ops are for both platforms",
    "test_state_in_a_pool": "the kernels get copies, which lie in no pool",
    "test_float32_result?*prefill*": "asks JAX whether products round as on the GPU",
}
"""Patterns of tests that may fail in this mode, and why; their kernels run nevertheless."""


class Trampolines:
    """In the place of the CPU library while ops are defined: handlers that run CUDA kernels."""

    def __init__(self, native: ctypes.CDLL, cuda: Any) -> None:
        self._native, self._cuda = native, cuda
        native.eet_trampoline.argtypes = (ctypes.c_void_p,)
        native.eet_trampoline.restype = ctypes.c_void_p

    def handler(self, name: str) -> Any:
        address = self._native.eet_trampoline(self._cuda.symbol_address(name))
        if address is None:
            raise pytest.UsageError("trampoline.cc has too few trampolines: raise kMost")
        return jax.ffi.pycapsule(address)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Defines the ops before a conftest or a test imports them."""
    jax.config.update("jax_platforms", "cpu")
    native = _build()
    gpu = _gpu(native)
    _load_cublaslt()
    define_ops(lambda library: Trampolines(native, library.require("cuda")))
    answer_for(gpu)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for pattern, reason in UNFIT.items():
            if fnmatch.fnmatchcase(item.name, pattern):
                item.add_marker(pytest.mark.xfail(reason=reason))


def _build() -> ctypes.CDLL:
    """The trampolines; compiling takes two seconds, less than keeping them would take thought."""
    nvcc = build_cuda.find_nvcc()
    if nvcc is None:
        raise pytest.UsageError("cuda_on_cpu needs nvcc: put it on PATH or set CUDA_HOME")
    source = Path(__file__).with_name("trampoline.cc")
    options = ["-shared", "-std=c++20", "-Xcompiler=-fPIC", "-isystem", jax.ffi.include_dir()]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "trampoline.so"
        subprocess.run([nvcc, *options, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def _gpu(native: ctypes.CDLL) -> Any:
    """What ``decode_step_problem`` asks of a device, for the GPU behind the trampolines."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    native.eet_compute_capability.restype = ctypes.c_char_p
    problem = native.eet_compute_capability(ctypes.byref(major), ctypes.byref(minor))
    if problem is not None:
        raise pytest.UsageError(f"cuda_on_cpu needs a GPU: {problem.decode()}")
    return types.SimpleNamespace(platform="gpu", compute_capability=f"{major.value}.{minor.value}")


def _load_cublaslt() -> None:
    """Loads cuBLASLt out of its wheel, as XLA's GPU backend would have done."""
    nvidia = importlib.util.find_spec("nvidia")
    for location in (nvidia.submodule_search_locations or []) if nvidia else []:
        library = Path(location) / "cu13" / "lib" / "libcublasLt.so.13"
        if library.exists():
            ctypes.CDLL(str(library))


def define_ops(cpu_library: Callable[[Any], Any]) -> None:
    """Imports xla_ops so that on the CPU each op lowers to its handler in ``cpu_library``, which
    is made of the module ``xla_ops._library``."""
    spec = importlib.util.find_spec("xla_ops")
    package = sys.modules["xla_ops"] = importlib.util.module_from_spec(spec)
    # What defines ops comes first, the package with its ops only when that is patched.
    ffi, library = map(importlib.import_module, ("xla_ops._ffi", "xla_ops._library"))
    cpu = cpu_library(library)
    define_op, platforms = ffi.define_op, tuple(ffi.PLATFORMS)

    def define_everywhere(*args: Any, **options: Any) -> Any:
        return define_op(*args, **options | {"platforms": platforms})

    with (
        mock.patch.dict(library.libraries, cpu=cpu),
        mock.patch.object(ffi, "define_op", define_everywhere),
    ):
        spec.loader.exec_module(package)


def answer_for(gpu: Any) -> None:
    """Lets JAX's devices answer as ``gpu`` does where the persistent kernel is concerned."""
    import xla_ops

    of_device = xla_ops.decode_step_problem
    xla_ops.decode_step_problem = lambda device: of_device(
        gpu if isinstance(device, jax.Device) else device
    )
