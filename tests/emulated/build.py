"""Builds the libraries of the emulated GPU."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import jax

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER.parents[1] / "build" / "emulated"


def build(target: str) -> Path:
    """The library ``target`` of CMakeLists.txt, built if anything has changed.

    Raises:
        RuntimeError: if that fails, with what was printed.
    """
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    options += [f"-DEET_XLA_INCLUDE={jax.ffi.include_dir()}"]
    # cmake and ninja lie beside the interpreter, as a rule.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["cmake", "-S", str(FOLDER), "-B", str(BUILD), *options],
                        ["cmake", "--build", str(BUILD), "--target", target]):  # fmt: skip
            done = subprocess.run(
                command, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return BUILD / f"lib{target}.so"
