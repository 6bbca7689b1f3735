"""The profile of the persistent decode step, as far as no GPU is needed: the profiled kernels
compile, shapes are written as C++, and the table says what blocks have noted."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from benchmark_modules import GPT2, LLAMA, load

profile_step = load("profile_step")
ROOT = profile_step.ROOT

COMPILER = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")


def compile_emulated(*options: object) -> None:
    """Compiles for the emulated GPU, in whose place CUDA's own headers would be."""
    paths = ("tests/emulated/include", "tests/emulated", "csrc", "benchmarks")
    flags = ["-std=c++20", "-w", "-x", "c++", "-include", "cuda_runtime.h", "-DEET_CUDA"]
    flags += ["-DEET_STEP_PROFILE", "-D__CUDA_ARCH__=900", *(f"-I{ROOT / path}" for path in paths)]
    done = subprocess.run(
        [COMPILER, *flags, *map(str, options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_profiled_kernels_compile():
    source = ROOT / "benchmarks" / "profile_step_kernels.cu"
    compile_emulated("-DHEAD_DIM=64", "-fsyntax-only", source)


@needs_compiler
def test_profiled_launch_compiles(tmp_path):
    (tmp_path / "profile_step_heads.inc").write_text(profile_step.declaration(64))
    source = ROOT / "benchmarks" / "profile_step_launch.cu"
    compile_emulated(f"-I{tmp_path}", "-fsyntax-only", source)


# What the program calls of CUDA on the host, and the emulated GPU lacks.
HOST_TYPES = """
enum CudaHost { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaStreamCaptureModeGlobal };
using cudaEvent_t = void*;
using cudaGraph_t = void*;
using cudaGraphExec_t = void*;
"""
HOST_FUNCTIONS = (
    *("Malloc", "Memcpy", "DeviceSynchronize"),
    *("StreamCreate", "StreamSynchronize", "StreamBeginCapture", "StreamEndCapture"),
    *("GraphInstantiate", "GraphLaunch", "GraphDestroy", "GraphExecDestroy"),
    *("EventCreate", "EventRecord", "EventSynchronize", "EventElapsedTime", "EventDestroy"),
)


@needs_compiler
def test_program_compiles(tmp_path):
    (tmp_path / "profile_step_shapes.inc").write_text(profile_step.shape("llama", LLAMA))
    host = [f"cudaError_t cuda{name}(Arguments&&...);\n" for name in HOST_FUNCTIONS]
    declarations = "".join(f"template <typename... Arguments>\n{line}" for line in host)
    (tmp_path / "host.h").write_text(HOST_TYPES + declarations)
    source = ROOT / "benchmarks" / "profile_step.cu"
    compile_emulated(f"-I{tmp_path}", "-include", "host.h", "-fsyntax-only", source)


def test_shapes_follow_the_config():
    llama, gpt2 = profile_step.shape("llama", LLAMA), profile_step.shape("gpt2", GPT2)
    assert llama.startswith('{.name = "llama", .layers = 2, .vocab = 96, .hidden = 32, .inner = 64')
    assert ".kv_heads = 2, .head_dim = 16, .rotary_dim = 16, .gated = 1, .layer_norm = 0" in llama
    assert ".head_norms = 1, .activation = eet::Activation(1)" in llama  # kSilu
    assert ".rotary_dim = 0, .gated = 0, .layer_norm = 1, .qkv_bias = 1" in gpt2
    assert ".head_norms = 0, .activation = eet::Activation(3)" in gpt2  # kGeluTanh


def test_models_must_be_known(capsys):
    with pytest.raises(SystemExit):
        profile_step.parse_args(["llama-4"])
    assert "got llama-4" in capsys.readouterr().err


# Three blocks, two layers. A phase lasts 20 us in the last block, 18 in the others, and all but
# the first is begun 2 us early. The third block has no part in the products' outputs of `out`, and
# nobody merges.
NOTES = """
#include "profile_step_table.h"

int main() {
  using namespace eet;
  constexpr int kLayers = 2;
  std::vector<int64_t> moments(StepProfile::MomentsOf({.layers = kLayers}));
  int64_t before = 1'000'000;
  for (int layer = 0; layer <= kLayers; ++layer) {
    for (int i = 0; i < (layer == kLayers ? 1 : kPhases); ++i) {
      const Phase phase = Phase(i);
      const bool first = layer + i == 0;
      for (int block = 0; block < 3; ++block) {
        const auto note = [&](StepEvent event, int64_t after) {
          moments[StepProfile::MomentAt(layer, phase, event, block)] = before + after;
        };
        note(StepEvent::kReported, 19'000);
        if (phase == Phase::kAttended) continue;
        note(StepEvent::kFinished, block == 2 ? 20'000 : 18'000);
        if (phase == Phase::kAttentionOut && block == 2) continue;
        note(StepEvent::kBegan, first ? 0 : -2'000);
        note(StepEvent::kStaged, 3'000);
        note(StepEvent::kMultiplied, 15'000);
      }
      if (phase == Phase::kAttended) continue;
      before += phase == Phase::kAttentionOut ? 18'000 : 20'000;
    }
  }
  profile::PrintTable(profile::Moments(moments, kLayers));
}
"""

TABLE = """
us began waited staged multiplied finished slowest which is mostly block
first qkv 0.00 - 3.00 15.00 18.00 20.00 2 (1 of 1)
qkv -2.00 -1.00 3.00 15.00 18.00 20.00 2 (1 of 1)
partials -2.00 -1.00 3.00 15.00 18.00 20.00 2 (2 of 2)
out -2.00 19.00 3.00 15.00 18.00 18.00 0 (2 of 2)
up -2.00 1.00 3.00 15.00 18.00 20.00 2 (2 of 2)
down -2.00 -1.00 3.00 15.00 18.00 20.00 2 (2 of 2)
head -2.00 -1.00 3.00 15.00 18.00 20.00 2 (1 of 1)
a layer 98.00 us, from the first begin to the last finish 216.0 us
"""


@needs_compiler
def test_table_says_what_blocks_have_noted(tmp_path):
    source, program = tmp_path / "notes.cu", tmp_path / "notes"
    source.write_text(NOTES)
    compile_emulated(source, "-o", program)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert [line.split() for line in printed.splitlines()] == [
        line.split() for line in TABLE.strip().splitlines()
    ]
