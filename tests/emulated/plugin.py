"""A pytest plugin that runs the ops' CUDA kernels on the emulated GPU (machine.h), as XLA's CPU
platform's ops: no GPU is needed, and no nvcc.

    PYTHONPATH=.:tests python -m pytest -p emulated.plugin tests/test_rms_norm.py
"""

from __future__ import annotations

import types

import jax
import pytest
from cuda_on_cpu import plugin as on_cpu
from emulated.build import build


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Builds the library and defines the ops before a conftest or a test imports them."""
    jax.config.update("jax_platforms", "cpu")
    path = build("emulated")
    on_cpu.define_ops(lambda library: library.native().Library(str(path)))
    on_cpu.answer_for(types.SimpleNamespace(platform="gpu", compute_capability="9.0"))


pytest_collection_modifyitems = on_cpu.pytest_collection_modifyitems
