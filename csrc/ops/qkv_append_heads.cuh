// How linear on Hopper finishes a tile of queries, keys and values: from registers to attention's
// operands.
#pragma once

#include <bit>

#include "ops/linear_prefill_sm90_epilogue.cuh"
#include "ops/rotary_append.h"

namespace eet {

// Stores four blocks from block n on of row i. A lane stores one of them, if that is `valid`.
template <typename T, int kWords>
__device__ __forceinline__ void StoreBlocks(const uint32_t (&words)[kWords], int n, int i, T* to,
                                            bool valid) {
  uint32_t row[4] = {words[2 * n + i], words[2 * n + 2 + i], words[2 * n + 4 + i],
                     words[2 * n + 6 + i]};
  TransposeFour(row);
  if (valid) reinterpret_cast<uint4*>(to)[QuadLane()] = {row[0], row[1], row[2], row[3]};
}

// A tile holds whole heads of kDim.
template <class Shape, int kDim>
class QkvHeads {
 public:
  using T = typename Shape::T;

  struct Args {
    const T* bias;  // [out] or nullptr
    int64_t out;
    RotaryAppendArgs<T> append;
  };

  // Asks where the tokens go; the answer is there when the products are.
  __device__ QkvHeads(const Args& args, int row, int out)
      : args_(args), append_(args.append), token_(row + RowOfLane()), out_(out) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = token_ + 8 * i;
      const bool valid = token < append_.tokens;
      rows_[i] = valid ? append_.rows[token] : -1;
      positions_[i] = valid ? append_.positions[token] : 0;
    }
  }

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums, LinearStore<Shape>&) const {
    const int64_t slots[2] = {CacheSlot(append_, rows_[0], positions_[0]),
                              CacheSlot(append_, rows_[1], positions_[1])};
    Words words;  // rounded to T, as a product of its own would be
    Pack<T>(sums, words);
    Pin(words);  // here and below: the compiler would keep them as floats as well
    if (append_.q_norm || append_.k_norm) Normalize(words);
    if (append_.rotary_table) Rotate(words);
    Store(slots, words);
  }

 private:
  // A tile's, as Pack gives them.
  using Words = uint32_t[Shape::kOuts / 4];

  static constexpr int kHeads = Shape::kOuts / kDim, kBlocks = kDim / 8;
  static_assert(Shape::kOuts % kDim == 0);

  static __device__ __forceinline__ float2 Unpack(uint32_t word) {
    return std::bit_cast<ValuePair<T>>(word).Floats();
  }

  static __device__ __forceinline__ uint32_t Repack(float first, float second) {
    return PackPair(first, second, std::type_identity<T>{});
  }

  // The word of block n of a head of the tile, in row i.
  static constexpr int WordOf(int head, int n, int i) { return 2 * (head * kBlocks + n) + i; }

  // Which of a KV head's a head of the tile is: a query, its key or its value.
  struct Part {
    int kv_head, index, queries;

    __device__ bool is_query() const { return index < queries; }
    __device__ bool is_key() const { return index == queries; }
    __device__ bool turns() const { return index <= queries; }
  };

  __device__ __forceinline__ Part PartOf(int head) const {
    const unsigned at = unsigned(out_) / kDim + head, parts = unsigned(append_.group) + 2;
    return {int(at / parts), int(at % parts), int(append_.group)};
  }

  // The root mean square norm of queries and keys.
  __device__ __forceinline__ void Normalize(Words& words) const {
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      const Part part = PartOf(head);
      const T* scale = part.is_query() ? append_.q_norm : part.is_key() ? append_.k_norm : nullptr;
      if (!scale) continue;
      const float inverse_rms[2] = {InverseRms(words, head, 0), InverseRms(words, head, 1)};
      Pin(words);
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        const float2 factors = LoadPair(scale + 8 * n + PairOfLane()).Floats();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& word = words[WordOf(head, n, i)];
          const auto [first, second] = Unpack(word);
          word = Repack(first * inverse_rms[i] * factors.x, second * inverse_rms[i] * factors.y);
        }
      }
    }
  }

  // Over the four lanes that share a row.
  __device__ __forceinline__ float InverseRms(const Words& words, int head, int i) const {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      const auto [first, second] = Unpack(words[WordOf(head, n, i)]);
      sum += first * first + second * second;
    }
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    return rsqrtf(sum * (1.0f / kDim) + append_.eps);
  }

  // Turns queries and keys. The heads of a tile share cosines and sines, which are asked for all at
  // once; beyond the rotated columns they turn nothing.
  __device__ __forceinline__ void Rotate(Words& words) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t token = min(token_ + 8 * i, int(append_.tokens) - 1);
      const float* table = append_.rotary_table + token * append_.rotary_dim + PairOfLane();
      float2 turns[kBlocks];
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        turns[n] = {1.0f, 0.0f};
        if (8 * n + PairOfLane() < append_.rotary_dim) {
          turns[n] = __ldg(reinterpret_cast<const float2*>(table + 8 * n));
        }
      }
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        if (!PartOf(head).turns()) continue;
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
          uint32_t& word = words[WordOf(head, n, i)];
          word = Turn(word, turns[n].x, turns[n].y);
        }
      }
    }
  }

  static __device__ __forceinline__ uint32_t Turn(uint32_t word, float cosine, float sine) {
    const auto [first, second] = Unpack(word);
    return Repack(first * cosine - second * sine, second * cosine + first * sine);
  }

  // The head of row i's token, nullptr if it has no place.
  __device__ __forceinline__ T* Target(int i, const Part& part, int64_t slot) const {
    const int64_t token = token_ + 8 * i;
    if (token >= append_.tokens || part.kv_head >= append_.kv_heads) return nullptr;
    if (part.is_query()) {
      return append_.q +
             ((token * append_.kv_heads + part.kv_head) * append_.group + part.index) * kDim;
    }
    if (slot < 0) return nullptr;
    T* pages = part.is_key() ? append_.k : append_.v;
    return pages + (slot + part.kv_head * append_.page_size) * kDim;
  }

  __device__ __forceinline__ void Store(const int64_t (&slots)[2], const Words& words) const {
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      const Part part = PartOf(head);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        T* target = Target(i, part, slots[i]);
#pragma unroll
        for (int n = 0; n < kBlocks; n += 4) {
          StoreBlocks(words, head * kBlocks + n, i, target + 8 * n, target != nullptr);
        }
      }
    }
  }

  const Args& args_;
  const RotaryAppendArgs<T>& append_;
  const int token_, out_;
  int32_t rows_[2], positions_[2];
};

}  // namespace eet
