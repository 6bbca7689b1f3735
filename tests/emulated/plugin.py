"""A pytest plugin that runs the ops' CUDA kernels on the emulated GPU (machine.h), as XLA's CPU
platform's ops: no GPU is needed, and no nvcc.

    PYTHONPATH=.:tests python -m pytest -p emulated.plugin tests/test_rms_norm.py
"""

from __future__ import annotations

import os
import subprocess
import types
from pathlib import Path

import jax
import pytest
from cuda_on_cpu import plugin as on_cpu

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("EMULATED_BUILD_DIR", ROOT / "build" / "emulated"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Builds the library and defines the ops before a conftest or a test imports them."""
    jax.config.update("jax_platforms", "cpu")
    path = build()
    on_cpu.define_ops(lambda library: library.native().Library(str(path)))
    on_cpu.answer_for(types.SimpleNamespace(platform="gpu", compute_capability="9.0"))


pytest_collection_modifyitems = on_cpu.pytest_collection_modifyitems


def build() -> Path:
    """The library, built if anything has changed."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "EET_XLA_INCLUDE": jax.ffi.include_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    source = str(Path(__file__).parent)
    for command in (["cmake", "-S", source, "-B", str(BUILD), "-G", "Ninja", *defines],
                    ["cmake", "--build", str(BUILD)]):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise pytest.UsageError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return BUILD / "libemulated.so"
