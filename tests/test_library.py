"""Native libraries that are missing, damaged or of another build are refused, and say so."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xla_ops import _library, linear, mlp, rms_norm

PLATFORM = "cpu" if jax.default_backend() == "cpu" else "cuda"


def test_op_without_a_library(monkeypatch):
    x, scale = jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
    before = rms_norm(x, scale)
    with monkeypatch.context() as patch:
        patch.delitem(_library.libraries, PLATFORM)
        patch.setitem(_library.problems, PLATFORM, "it was not built")
        with pytest.raises(RuntimeError, match=r"it was not built; build it with `.*pip install"):
            jax.jit(lambda x: rms_norm(x, scale))(x)
    np.testing.assert_array_equal(jax.jit(lambda x: rms_norm(x, scale))(x), before)


def test_op_where_jit_is_disabled():
    x, scale = jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
    want = rms_norm(x, scale)
    with jax.disable_jit():
        np.testing.assert_array_equal(rms_norm(x, scale), want)
        assert jax.grad(lambda x: rms_norm(x, scale).sum())(x).shape == x.shape


def test_scratch_memory_is_no_result():
    """Debugging NaNs looks at all results of a primitive, and scratch memory may hold any bytes."""
    x, up, down = (jnp.ones(shape, jnp.bfloat16) for shape in ((300, 64), (512, 64), (64, 256)))
    residual = jnp.ones((300, 512), jnp.bfloat16)
    nan = np.full((300, 512), np.nan, jnp.bfloat16)
    with jax.debug_nans(True):
        for _ in range(20):
            garbage = [jax.device_put(nan, may_alias=False) for _ in range(3)]
            del garbage
            mlp(x, up, down, path="prefill")
            linear(x, up, residual=residual, activation="silu")


def test_without_the_native_module():
    """Importing works, references run, and what needs the module names the command."""
    program = """
import sys
sys.modules["xla_ops._native"] = None
import jax.numpy as jnp, eet_jax, xla_ops
x = jnp.ones((2, 8))
xla_ops.rms_norm(x, jnp.ones(8), implementation="reference")
for call in (lambda: xla_ops.rms_norm(x, jnp.ones(8)), lambda: eet_jax.BufferPool(1024)):
    try:
        call()
    except RuntimeError as error:
        assert "native module" in str(error) and "pip install" in str(error), error
    else:
        raise AssertionError("nothing was raised")
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def loaded(monkeypatch):
    """Empty tables of libraries and problems for one platform, "x"."""
    monkeypatch.setattr(_library, "libraries", {})
    monkeypatch.setattr(_library, "problems", {})
    return _library


def test_missing_and_damaged_files(loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    loaded._load("x", "libx.so")
    assert loaded.problems == {"x": "libx.so was not built"}
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libx.so").write_bytes(b"\x7fELF, but no more")
    loaded._load("x", "libx.so")
    assert loaded.problems["x"].startswith("libx.so is unusable: ")
    assert loaded.libraries == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"abi_version": 2}, "its ABI version is 2, not 1"),
        ({"source_hash": "b"}, "it was built from other sources than the Python module"),
        ({"ffi_api_version": (0, 99)}, r"built for XLA FFI API \(0, 99\), jaxlib has"),
        ({"ffi_api_version": (1, 0)}, r"built for XLA FFI API \(1, 0\), jaxlib has"),
    ],
)
def test_libraries_of_another_build(change, match):
    fields = {"abi_version": 1, "source_hash": "a", "ffi_api_version": _library.ffi_api_version()}
    native = types.SimpleNamespace(abi_version=1, source_hash="a")
    _library._check(types.SimpleNamespace(**fields), native)
    with pytest.raises(ImportError, match=match):
        _library._check(types.SimpleNamespace(**fields | change), native)
