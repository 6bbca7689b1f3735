// The products of the decode step: a consumer warp's part of every tile, on tensor cores.
//
// Tokens are the 16 rows of the first operand, eight outputs the columns of the second. The warps
// deal a tile's columns among themselves; the finisher adds their sums in the order of the warps.
#pragma once

#include "ops/decode_step_input.cuh"

namespace eet {

// kTokens: 8 or 16, at least the batch.
template <typename T, int kTokens>
class Multiplier {
 public:
  __device__ explicit Multiplier(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()) {
    const int batch = block.batch(), row = lane_ % 8;
    weight_offset_ = warp_ * kChunkBytes + row * (kChunkColumns * 2) + ((lane_ / 8 ^ row) << 4);
    const int token = kTokens == 8 ? row : lane_ / 8 % 2 * 8 + row;
    const int piece = kTokens == 8 ? lane_ / 8 : lane_ / 16;
    const bool exists = token < batch;
    const uint32_t input = SharedAddress(block.memory + block.params.memory.input);
    zeros_ = SharedAddress(block.words.zeros);
    token_address_ =
        exists ? input + token * (kChunkColumns * 2) + ((piece ^ token % 8) << 4) : zeros_;
    token_stride_ = exists ? batch * kChunkColumns * 2 : 0;
  }

  // Multiplies a block's share of a kernel by the input, tile by tile, from `place` on.
  __device__ void Run(const ProductShare& share, InputSlab<T, kTokens>& slab, RingPlace& place) {
    if (share.group == 1) {
      RunUnits<1>(share, slab, place);
    } else {
      RunUnits<kUnitGroup>(share, slab, place);
    }
  }

 private:
  static constexpr int kChunkBytes = kTileRows * kChunkColumns * 2;

  // Sums of a unit: of the halves of the warp's first and second chunk of every tile, so that
  // products need not wait for each other.
  using Sums = float[4][4];

  template <int kGroup>
  __device__ __forceinline__ void RunUnits(const ProductShare& share, InputSlab<T, kTokens>& slab,
                                           RingPlace& place) {
    for (int unit = share.begin; unit < share.end; unit += kGroup) {
      Sums sums[kGroup] = {};
      for (int first = 0; first < share.chunks; first += share.slab) {
        const int count = min(share.slab, share.chunks - first);
        if (kGroup > 1) slab.BringSlab(first, count);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (unit + i < share.end) MultiplyUnit(count, place, sums[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (unit + i < share.end) HandOver(sums[i]);
      }
    }
  }

  // First all loads, those of the tokens before the tile is waited for, then all products. Without
  // a branch: chunks beyond the last are zeros in the tile, and meet tokens that are zeros.
  __device__ __forceinline__ void MultiplyUnit(int chunks, RingPlace& place, Sums& sums) {
    for (int first = 0; first < chunks; first += kTileChunks) {
      uint32_t tokens[4][kTokens / 2], weights[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int chunk = first + warp_ + i / 2 * kConsumers;
        const uint32_t address = token_address_ + chunk * token_stride_;
        LoadTokens(chunk < chunks ? address : zeros_, i % 2, tokens[i]);
      }
      const uint32_t tile = SharedAddress(block_.AwaitTile(place)) + weight_offset_;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        LoadMatrices(weights[i], (tile + i / 2 * (kConsumers * kChunkBytes)) ^ (i % 2 << 6));
      }
      block_.ReleaseTile(place, lane_);
#pragma unroll
      for (int i = 0; i < 4; ++i) Multiply(tokens[i], weights[i], sums[i]);
    }
  }

  // Half a chunk of the tokens: 32 columns.
  __device__ __forceinline__ static void LoadTokens(uint32_t address, int half,
                                                    uint32_t (&tokens)[kTokens / 2]) {
    if constexpr (kTokens == 8) {
      LoadMatrices(tokens, address ^ (half << 6));
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t part[4];
        LoadMatrices(part, address ^ (half << 6 | i << 5));
#pragma unroll
        for (int j = 0; j < 4; ++j) tokens[4 * i + j] = part[j];
      }
    }
  }

  __device__ __forceinline__ static void Multiply(const uint32_t (&tokens)[kTokens / 2],
                                                  const uint32_t (&weights)[4], float (&sums)[4]) {
    constexpr std::type_identity<T> kType;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // 16 columns
      const uint32_t b[2] = {weights[2 * i], weights[2 * i + 1]};
      if constexpr (kTokens == 8) {
        MmaM16N8K16(sums, {tokens[2 * i], 0, tokens[2 * i + 1], 0}, b, kType);
      } else {
        const uint32_t (&a)[8] = tokens;
        MmaM16N8K16(sums, {a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]}, b, kType);
      }
    }
  }

  // Gives a unit's sums to the finisher.
  __device__ __forceinline__ void HandOver(const Sums& sums) {
    const int batch = block_.batch(), token = lane_ / 4;
    block_.watch.Until(
        [&] { return block_.words.sums_empty[slot_.stage].TryWait(slot_.parity ^ 1); },
        StepBlock<T>::kSumsWait);
    float* out = reinterpret_cast<float*>(block_.memory + block_.params.memory.sums) +
                 (slot_.stage * kConsumers + warp_) * batch * kTileRows + lane_ % 4 * 2;
    const auto store = [&](int row, int i) {
      if (row < batch) {
        const auto sum = [&](int j) {
          return (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]);
        };
        *reinterpret_cast<float2*>(out + row * kTileRows) = make_float2(sum(i), sum(i + 1));
      }
    };
    store(token, 0);
    if (kTokens == 16) store(token + 8, 2);
    __syncwarp();
    if (lane_ == 0) block_.words.sums_full[slot_.stage].Arrive();
    slot_.Advance(block_.params.memory.sum_slots);
  }

  StepBlock<T>& block_;
  const int warp_, lane_;
  uint32_t weight_offset_, token_address_, zeros_;
  int token_stride_;
  RingPlace slot_;
};

}  // namespace eet
