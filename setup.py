"""Builds the native libraries with CMake and Ninja; everything else is in pyproject.toml.

EET_JAX_CUDA=auto|0|1 decides on the CUDA library: auto builds it when nvcc works, 1 fails without
nvcc, 0 never builds it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import build_cuda  # noqa: E402

CSRC = ROOT / "csrc"


def source_hash() -> str:
    """One hash over every source file, compiled into module and libraries."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(CSRC).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def package_include(package: str) -> Path:
    """The include directory inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"building eet_jax needs {package}: pip install {package}")
    return Path(spec.origin).parent / "include"


class CMakeBuild(build_ext):
    """Runs CMake and copies what it built next to the packages."""

    def build_extension(self, ext: Extension) -> None:
        """Builds everything; there is one extension."""
        build = Path(os.environ.get("EET_JAX_BUILD_DIR", self.build_temp)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        self.configure(build)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)

        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        libraries = module.parent / "lib"
        libraries.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", module)
        for library in build.glob("libeet_*.so"):
            if library.name != "libeet_cuda.so" or build_cuda.compiler():
                shutil.copy2(library, libraries / library.name)

    def copy_extensions_to_source(self) -> None:
        """For editable installs: the kernel libraries go where the module goes."""
        super().copy_extensions_to_source()
        built = Path(self.get_ext_fullpath(self.extensions[0].name)).parent / "lib"
        shutil.copytree(Path(self.build_lib) / "xla_ops" / "lib", built, dirs_exist_ok=True)

    def configure(self, build: Path) -> None:
        """Runs CMake's first half."""
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            # An isolated build's ninja is gone by the next one, which finds it in CMake's cache.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja") or "ninja",
            "EET_PYTHON_INCLUDE": sysconfig.get_paths()["include"],
            "EET_PYTHON_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "EET_PYBIND11_INCLUDE": package_include("pybind11"),
            "EET_XLA_INCLUDE": package_include("jaxlib"),
            "EET_SOURCE_HASH": source_hash(),
        }
        options |= self.cuda_options()
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        extra = os.environ.get("CMAKE_ARGS", "").split()
        command = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *definitions, *extra]
        subprocess.run(command, check=True)

    def cuda_options(self) -> dict[str, object]:
        """What CMake needs for the CUDA library."""
        nvcc = build_cuda.compiler()
        if nvcc is None:
            print("eet_jax: building without CUDA", file=sys.stderr)
            return {"EET_CUDA": "OFF"}
        cublas = build_cuda.wheel_include()
        if cublas is None and not build_cuda.toolkit_has_cublas(nvcc):
            raise SystemExit("no cublasLt.h: pip install nvidia-cublas")
        return {
            "EET_CUDA": "ON",
            "CMAKE_CUDA_COMPILER": nvcc,
            "EET_CUBLAS_INCLUDE": cublas or "",
        }


setup(
    ext_modules=[Extension("xla_ops._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=build_cuda.requirements() if "egg_info" in sys.argv else [],
)
