"""Where the time of the persistent decode step goes: builds and runs profile_step.cu.

python benchmarks/profile_step.py llama-3.2-1b --batches 1 8 --contexts 1024

Needs nvcc, and a Hopper GPU unless --build-only. What it builds, build/profile_step/profile_step,
needs nothing else and takes a model, a batch and a context:

python benchmarks/profile_step.py llama-3.2-1b --build-only
build/profile_step/profile_step llama-3.2-1b 1 1024
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shapes import MODELS

from eet_jax import DecoderConfig
from xla_ops._linear import ACTIVATIONS

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "profile_step"
USUAL = ("llama-3.2-1b", "llama-3-8b", "qwen3-0.6b", "gpt2-124m")

# As CMakeLists.txt compiles them with EET_WERROR.
FLAGS = [
    "-O3",
    "-std=c++20",
    "--extended-lambda",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-Wall",
    "-Xcompiler=-Werror",
    "--Werror=all-warnings",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-DEET_CUDA",
    "-DEET_STEP_PROFILE",
]


def main(argv: Sequence[str] | None = None) -> None:
    """Builds the program for the models, then runs it for each of them, batch and context."""
    args = parse_args(argv)
    program = build(args.models, args.jobs)
    if args.build_only:
        return
    for model, batch, context in itertools.product(args.models, args.batches, args.contexts):
        subprocess.run([program, model, str(batch), str(context)], check=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="1 to 16")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024], help="tokens of a row")
    parser.add_argument("--build-only", action="store_true", help="to run it on another machine")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    args = parser.parse_args(argv)
    args.models = args.models or [*USUAL]
    for model in args.models:
        if model not in MODELS:
            parser.error(f"models must be of {', '.join(MODELS)}, got {model}")
    return args


def build(models: Sequence[str], jobs: int) -> Path:
    """The program for some models, compiled and linked.

    Raises:
        SystemExit: without nvcc, or where it fails.
    """
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("profile_step needs nvcc: put it on PATH or name it in CUDACXX")
    BUILD.mkdir(parents=True, exist_ok=True)
    head_dims = {MODELS[name].head_dim for name in models}
    shapes = "".join(shape(name, MODELS[name]) for name in models)
    (BUILD / "profile_step_shapes.inc").write_text(shapes)
    (BUILD / "profile_step_heads.inc").write_text("".join(map(declaration, head_dims)))
    units = {
        "main": ["benchmarks/profile_step.cu"],
        "launch": ["benchmarks/profile_step_launch.cu"],
        "tensor_map": ["csrc/core/tensor_map.cc"],
    }
    for dim in head_dims:
        units[f"head{dim}"] = [f"-DHEAD_DIM={dim}", "benchmarks/profile_step_kernels.cu"]

    def compile_unit(unit: str) -> str:
        target = str(BUILD / f"{unit}.o")
        run([nvcc, *FLAGS, "-Icsrc", f"-I{BUILD}", "-c", "-o", target, *units[unit]])
        return target

    with ThreadPoolExecutor(jobs) as pool:
        objects = [*pool.map(compile_unit, units)]
    program = BUILD / "profile_step"
    run([nvcc, *FLAGS, "-o", str(program), *objects])
    return program


def run(command: Sequence[str]) -> None:
    """A compiler, in the root of the repository."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"profile_step: failed: {' '.join(command)}")


def declaration(head_dim: int) -> str:
    """That profile_step_kernels.cu is compiled for these heads."""
    arguments = "Stream, const StepParams<bfloat16>&, int"
    return f"extern template void LaunchDecodeStep<bfloat16, {head_dim}>({arguments});\n"


def shape(name: str, config: DecoderConfig) -> str:
    """A Shape of profile_step_model.cuh."""
    values = {
        "name": f'"{name}"',
        "layers": config.num_layers,
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rotary_dim": config.rotary_size,
        "gated": int(config.gated_mlp),
        "layer_norm": int(config.norm == "layer"),
        "qkv_bias": int(config.qkv_bias),
        "output_bias": int(config.output_bias),
        "mlp_bias": int(config.mlp_bias),
        "head_norms": int(config.qk_norm),
        "activation": f"eet::Activation({ACTIVATIONS.index(config.activation)})",
    }
    return "{" + ", ".join(f".{key} = {value}" for key, value in values.items()) + "},\n"


if __name__ == "__main__":
    main()
