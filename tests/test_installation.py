"""What doctor says of installations that are not in order."""

from __future__ import annotations

import re
import types

import jax
import pytest

import eet_jax
from eet_jax import installation
from xla_ops import _library

CUBLASLT = "libcublasLt.so.13 cannot be loaded; run `pip install 'nvidia-cublas>=13,<14'`"


def problems() -> str:
    return "\n".join(eet_jax.doctor().problems)


def test_backend_that_does_not_start(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    report = eet_jax.doctor()
    assert report.devices == []
    assert not report.healthy
    assert "JAX finds no devices: RuntimeError: Unable to initialize backend" in report.problems[0]
    assert report.libraries["cpu"].startswith("loaded")


@pytest.mark.parametrize(
    ("capability", "status"),
    [("9.0", "available"), ("8.0", "not available: .* capability 9.0, this one has 8.0")],
)
def test_persistent_decode(monkeypatch, capability, status):
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA", compute_capability=capability)
    monkeypatch.setitem(_library.libraries, "cuda", _library.libraries["cpu"])
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    [found] = eet_jax.doctor().persistent_decode.values()
    assert re.fullmatch(status, found)


@pytest.mark.parametrize("found", [False, True])
def test_cuda_library_without_cublaslt(monkeypatch, found):
    monkeypatch.setitem(_library.libraries, "cuda", _library.libraries["cpu"])
    monkeypatch.setattr(installation, "_loads", lambda library: found)
    assert (CUBLASLT in problems()) == (not found)


def test_cublaslt_in_the_wheel_beside_the_library(monkeypatch, tmp_path):
    wheel = tmp_path / "nvidia" / "cu13" / "lib" / "libcublasLt.so.13"
    monkeypatch.setitem(_library.libraries, "cuda", _library.libraries["cpu"])
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "xla_ops" / "_library.py"))
    monkeypatch.setattr(installation, "_loads", lambda library: library == str(wheel))
    assert CUBLASLT not in problems()


def test_no_cuda_library_needs_no_cublaslt(monkeypatch):
    monkeypatch.delitem(_library.libraries, "cuda", raising=False)
    monkeypatch.setitem(_library.problems, "cuda", "libeet_cuda.so was not built")
    monkeypatch.setattr(installation, "_loads", lambda library: False)
    assert "cublas" not in problems()


def test_missing_library_names_the_command(monkeypatch):
    monkeypatch.delitem(_library.libraries, "cpu")
    monkeypatch.setitem(_library.problems, "cpu", "libeet_cpu.so was not built")
    assert "cpu: libeet_cpu.so was not built; run `pip install" in problems()
