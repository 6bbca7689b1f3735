// A decoder of random weights and a filled cache on the GPU. What is allocated lasts as long as the
// program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/launch.cuh"
#include "core/launch_problem.h"
#include "core/random.h"
#include "ops/decode_step.h"

namespace eet::profile {

// As profile_step.py writes them, from shapes.py.
struct Shape {
  std::string name;
  int64_t layers, vocab, hidden, inner, heads, kv_heads, head_dim, rotary_dim;
  bool gated, layer_norm, qkv_bias, output_bias, mlp_bias, head_norms;
  Activation activation;
};

// Ends the program with the message of CUDA, or of a launcher.
inline void Check(cudaError_t error = cudaGetLastError()) {
  const std::string problem = error ? cudaGetErrorString(error) : LaunchProblem();
  if (problem.empty()) return;
  std::fprintf(stderr, "profile_step: %s\n", problem.c_str());
  std::exit(1);
}

template <typename T>
T* Allocate(int64_t count) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, count * sizeof(T)));
  return static_cast<T*>(memory);
}

template <typename T>
T* Upload(const std::vector<T>& values) {
  T* memory = Allocate<T>(values.size());
  Check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return memory;
}

template <typename T>
std::vector<T> Download(const T* memory, int64_t count) {
  std::vector<T> values(count);
  Check(cudaMemcpy(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

__global__ void FillKernel(bfloat16* values, int64_t count, float mean, float deviation) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const auto [bits, _] = Threefry({1, 2}, {uint32_t(i), uint32_t(i >> 32)});
    const float uniform = float(bits) * 0x1p-32f - 0.5f;
    values[i] = bfloat16(mean + deviation * sqrtf(12.0f) * uniform);
  }
}

inline bfloat16* Random(int64_t count, float mean, float deviation) {
  bfloat16* values = Allocate<bfloat16>(count);
  LaunchKernel(FillKernel, {.grid = 1024, .block = 256}, nullptr, values, count, mean, deviation);
  Check();
  return values;
}

// [layers, out, in]: products of independent inputs keep their deviation.
inline const bfloat16* Kernel(int64_t layers, int64_t out, int64_t in) {
  return Random(layers * out * in, 0.0f, 1.0f / std::sqrt(float(in)));
}

inline const bfloat16* Bias(bool exists, int64_t count) {
  return exists ? Random(count, 0.0f, 0.1f) : nullptr;
}

inline NormWeights<bfloat16> Norm(const Shape& shape, int64_t count) {
  return {.kind = shape.layer_norm ? NormKind::kLayer : NormKind::kRms,
          .scale = Random(count, 1.0f, 0.1f),
          .bias = Bias(shape.layer_norm, count),
          .eps = 1e-5f};
}

inline DecodeStepSizes Sizes(const Shape& shape, int64_t batch, int64_t context) {
  constexpr int64_t kPageSize = 64;
  const int64_t max_pages = context / kPageSize + 1;
  return {.batch = batch,
          .layers = shape.layers,
          .vocab = shape.vocab,
          .hidden = shape.hidden,
          .intermediate = shape.inner,
          .heads = shape.heads,
          .kv_heads = shape.kv_heads,
          .head_dim = shape.head_dim,
          .rotary_dim = shape.rotary_dim,
          .pages = 1 + batch * max_pages,
          .page_size = kPageSize,
          .max_pages = max_pages,
          .gated = shape.gated};
}

inline void MakeWeights(const Shape& shape, DecodeStepArgs<bfloat16>& step) {
  const DecodeStepSizes& sizes = step.sizes;
  const int64_t layers = sizes.layers, hidden = sizes.hidden;
  step.attention_norm = Norm(shape, layers * hidden);
  step.qkv_kernel = Kernel(layers, sizes.qkv_size(), hidden);
  step.qkv_bias = Bias(shape.qkv_bias, layers * sizes.qkv_size());
  if (shape.head_norms) {
    step.q_norm = Random(layers * sizes.head_dim, 1.0f, 0.1f);
    step.k_norm = Random(layers * sizes.head_dim, 1.0f, 0.1f);
  }
  step.o_kernel = Kernel(layers, hidden, sizes.q_size());
  step.o_bias = Bias(shape.output_bias, layers * hidden);
  step.mlp_norm = Norm(shape, layers * hidden);
  step.up_kernel = Kernel(layers, sizes.up_size(), hidden);
  step.up_bias = Bias(shape.mlp_bias, layers * sizes.up_size());
  step.down_kernel = Kernel(layers, hidden, sizes.intermediate);
  step.down_bias = Bias(shape.mlp_bias, layers * hidden);
  step.final_norm = Norm(shape, hidden);
  step.head = Kernel(1, sizes.vocab, hidden);
}

// All rows have `context` tokens, the new one among them. Row r's pages follow those of row r - 1.
inline void MakeTokens(int64_t context, DecodeStepArgs<bfloat16>& step) {
  const DecodeStepSizes& sizes = step.sizes;
  std::vector<int32_t> rows(sizes.batch), page_table(sizes.batch * sizes.max_pages);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = int32_t(i);
  for (size_t i = 0; i < page_table.size(); ++i) page_table[i] = int32_t(1 + i);
  std::vector<float> rotary(sizes.batch * sizes.rotary_dim);
  for (size_t i = 0; i < rotary.size(); ++i) {
    const float angle = float(i / 2 % 7);
    rotary[i] = i % 2 ? std::sin(angle) : std::cos(angle);
  }
  step.x = Random(sizes.batch * sizes.hidden, 0.0f, 1.0f);
  step.rows = Upload(rows);
  step.positions = Upload(std::vector<int32_t>(sizes.batch, int32_t(context - 1)));
  step.page_table = Upload(page_table);
  step.rotary_table = rotary.empty() ? nullptr : Upload(rotary);
}

inline DecodeStepArgs<bfloat16> MakeStep(const Shape& shape, int64_t batch, int64_t context) {
  DecodeStepArgs<bfloat16> step = {};
  step.sizes = Sizes(shape, batch, context);
  step.activation = shape.activation;
  step.scale = 1.0f / std::sqrt(float(shape.head_dim));
  step.wait_limit = 1'000'000'000;
  MakeWeights(shape, step);
  MakeTokens(context, step);
  const DecodeStepSizes& sizes = step.sizes;
  const int64_t cache =
      sizes.layers * sizes.pages * sizes.kv_heads * sizes.page_size * sizes.head_dim;
  step.k = Random(cache, 0.0f, 1.0f);
  step.v = Random(cache, 0.0f, 1.0f);
  step.logits = Allocate<float>(sizes.batch * sizes.vocab);
  step.exchange = Allocate<char>(DecodeStepExchange(sizes).bytes());
  step.status = Upload(std::vector<int32_t>{0});
  return step;
}

}  // namespace eet::profile
