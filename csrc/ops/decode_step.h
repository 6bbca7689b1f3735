// One token for each of a few rows through the whole decoder, in one launch:
//   logits = head(norm(layers(x)))
// The kernel is explained in decode_step_kernel.cuh.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/stream.h"
#include "core/types.h"
#include "ops/activation.h"
#include "ops/decode_attention.h"
#include "ops/norm.h"

namespace eet {

struct DecodeStepSizes {
  int64_t batch, layers, vocab, hidden, intermediate;
  int64_t heads, kv_heads, head_dim, rotary_dim;
  int64_t pages, page_size, max_pages;
  bool gated;

  EET_HOST_DEVICE int64_t q_size() const { return heads * head_dim; }
  EET_HOST_DEVICE int64_t qkv_size() const { return (heads + 2 * kv_heads) * head_dim; }
  EET_HOST_DEVICE int64_t up_size() const { return gated ? 2 * intermediate : intermediate; }
};

// Weights are stacked over layers, [out, in] row-major, laid out as in xla_ops/_layer.py; biases,
// and norms of q and k, may be nullptr.
template <typename T>
struct DecodeStepArgs {
  const T* x;                 // [batch, hidden], the embedded tokens
  const int32_t* rows;        // [batch], of the page table; -1: the token's logits are NaN
  const int32_t* positions;   // [batch], where the token goes
  const int32_t* page_table;  // [rows, max_pages]
  const float* rotary_table;  // [batch, rotary_dim / 2, 2] or nullptr
  const int32_t* windows;     // [layers], keys visible to a query, 0: all; nullptr: `window`
  NormWeights<T> attention_norm, mlp_norm;  // [layers, hidden]
  NormWeights<T> final_norm;                // [hidden]
  const T *qkv_kernel, *qkv_bias, *q_norm, *k_norm, *o_kernel, *o_bias;
  const T *up_kernel, *up_bias, *down_kernel, *down_bias;
  const T* head;    // [vocab, hidden]
  T *k, *v;         // [layers, pages, kv_heads, page_size, head_dim], appended to
  float* logits;    // [batch, vocab]
  void* exchange;   // [DecodeStepExchange(sizes).bytes()]
  int32_t* status;  // [1], left alone, or 1 + the phase that was waited for too long
  DecodeStepSizes sizes;
  Activation activation;
  float scale;         // of the scores
  int32_t window;      // of all layers, where there are no `windows`
  int64_t wait_limit;  // nanoseconds, of one wait, before the step is given up
};

// Launches the step. Returns without a launch, with the reason in LaunchProblem, where the device
// or the sizes are not those that DecodeStepFits accepts.
template <typename T>
void DecodeStep(Stream stream, const DecodeStepArgs<T>& args);

// The results of a layer's phases, in the order in which a token meets them.
enum class Phase : int { kQkv, kPartials, kAttended, kAttentionOut, kUp, kDown };
constexpr int kPhases = 6;

constexpr int kStepTokens = 16;  // at most

// Keys of a tile of the cache, keys and values in 16 KiB at most: a split of a row's keys is a
// multiple of them, and a page too.
EET_HOST_DEVICE constexpr int64_t StepTileKeys(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 32 : 16;
}

// Where blocks leave their results for each other: each layer's phases one after the other, all
// activations [batch, size]. In 32-bit words; every section is a multiple of 16 bytes.
struct DecodeStepExchange {
  static constexpr int64_t kCounterStride = 32;  // a line of L2 each
  static constexpr int64_t kMaxBlocks = 144;     // a multiple of 16

  explicit EET_HOST_DEVICE DecodeStepExchange(const DecodeStepSizes& sizes) {
    splits = std::min<int64_t>(
        kMaxSplits, sizes.max_pages * sizes.page_size / StepTileKeys(sizes.head_dim) + 1);
    const int64_t batch = sizes.batch, hidden = batch * sizes.hidden / 2;
    partials = batch * sizes.qkv_size() / 2;
    log_sums = partials + batch * sizes.q_size() / 2 * splits;
    attended = log_sums + (batch * sizes.heads * splits + 3) / 4 * 4;
    attention_out = attended + batch * sizes.q_size() / 2;
    up = attention_out + hidden;
    down = up + batch * sizes.intermediate / 2;
    layer = down + hidden;
    statistics = layer * sizes.layers;
    counters = statistics + (2 * sizes.layers + 1) * batch * 2 * kMaxBlocks;
    words = counters + sizes.layers * kPhases * kCounterStride;
  }

  int64_t bytes() const { return words * 4; }

  // Within a layer; QKV is at 0.
  int64_t partials;  // [batch, heads, splits, head_dim], weighted sums of values
  int64_t log_sums;  // [batch, heads, splits] float32, base 2
  int64_t attended, attention_out, up, down;
  int64_t layer;  // words of one layer

  // Sums of the residual stream's squares, then of the stream, over each block's rows: before the
  // first layer, then after each layer's attention and after its feed-forward.
  int64_t statistics;  // [2 * layers + 1, 2, batch, kMaxBlocks] float32
  int64_t counters;    // [layers, phases, kCounterStride]
  int64_t words, splits;
};

// There is a kernel for each of them. Mirrored in _decode_step.py and CMakeLists.txt.
constexpr bool StepHasHeadDim(int64_t head_dim) {
  for (const int64_t has : {64, 80, 96, 128, 160, 192, 256}) {
    if (head_dim == has) return true;
  }
  return false;
}

// Whether sizes are those that the kernel takes: a block keeps its part of the stream in shared
// memory, beside the ring. Mirrored in _decode_step.py.
template <typename T>
constexpr bool DecodeStepFits(const DecodeStepSizes& sizes) {
  const bool in_chunks =
      sizes.hidden % 64 == 0 && sizes.q_size() % 64 == 0 && sizes.intermediate % 64 == 0;
  return sizeof(T) == 2 && sizes.batch <= kStepTokens && in_chunks &&
         StepHasHeadDim(sizes.head_dim) && sizes.page_size % 64 == 0 && sizes.hidden <= 65536 &&
         sizes.layers * sizes.pages * sizes.kv_heads * sizes.page_size <= INT32_MAX;
}

}  // namespace eet
