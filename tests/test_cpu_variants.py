"""Every build of the CPU library that this processor runs, not only the fastest: random products,
norms, rotations and cached attention, each in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xla_ops import _library

TESTS = [str(Path(__file__).parent / f"test_fuzz_{name}.py") for name in ("ops", "cache")]


def run(*arguments, variant):
    environment = os.environ | {"EET_JAX_CPU": variant, "JAX_PLATFORMS": "cpu"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fastest_is_loaded():
    assert _library.cpu_variant() == os.environ.get(
        "EET_JAX_CPU", _library.native().cpu_variants()[0]
    )
    assert _library.native().cpu_variants()[-1] == "baseline"


@pytest.mark.parametrize("variant", _library.native().cpu_variants()[1:])
def test_the_others(variant):
    program = "from xla_ops import _library; print(_library.cpu_variant(), *_library.libraries)"
    assert run("-c", program, variant=variant).stdout.split()[:2] == [variant, "cpu"]
    result = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, variant=variant)
    assert result.returncode == 0, result.stdout[-3000:]


def test_one_that_this_processor_does_not_run():
    program = "import xla_ops._library as _; print(_.problems['cpu']); _.require('cpu')"
    result = run("-c", program, variant="avx1024")
    assert result.stdout.startswith("EET_JAX_CPU must be one of ")
    assert "baseline, got 'avx1024'" in result.stdout
    assert "RuntimeError: eet_jax has no native library for cpu" in result.stderr
