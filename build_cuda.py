"""Where the CUDA toolkit is, for setup.py; what building with it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path


def find_nvcc() -> str | None:
    """The path of a working nvcc, or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for nvcc in (os.environ.get("CUDACXX"), shutil.which("nvcc"), f"{home}/bin/nvcc"):
        if nvcc and shutil.which(nvcc):
            works = subprocess.run([nvcc, "--version"], capture_output=True, check=False)
            if works.returncode == 0:
                return nvcc
    return None


def compiler() -> str | None:
    """The nvcc to build the CUDA library with, or None for a CPU-only build."""
    choice = os.environ.get("EET_JAX_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"EET_JAX_CUDA must be auto, 0 or 1, got {choice!r}")
    nvcc = None if choice == "0" else find_nvcc()
    if choice == "1" and nvcc is None:
        raise SystemExit("EET_JAX_CUDA=1 needs nvcc: put it on PATH or set CUDA_HOME")
    return nvcc


def toolkit_has_cublas(nvcc: str) -> bool:
    """Whether ``nvcc`` finds cublasLt.h by itself."""
    command = [nvcc, "-E", "-x", "cu", "-"]
    source = "#include <cublasLt.h>"
    return (
        subprocess.run(
            command, input=source, capture_output=True, text=True, check=False
        ).returncode
        == 0
    )


def wheel_include() -> Path | None:
    """The include directory of the nvidia-cublas wheel, if that is installed."""
    nvidia = importlib.util.find_spec("nvidia")
    locations = (nvidia.submodule_search_locations or []) if nvidia else []
    candidates = [Path(location) / "cu13" / "include" for location in locations]
    return next((path for path in candidates if (path / "cublasLt.h").exists()), None)


def requirements() -> list[str]:
    """The wheel with cublasLt.h, where the toolkit does not have it."""
    nvcc = compiler()
    have = nvcc is None or toolkit_has_cublas(nvcc) or wheel_include()
    return [] if have else ["nvidia-cublas>=13,<14"]


if __name__ == "__main__":
    print(*requirements())
