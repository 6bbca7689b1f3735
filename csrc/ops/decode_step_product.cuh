// The products of the decode step: a consumer warp's part of every tile, on tensor cores.
//
// The warps deal a tile's columns among themselves; a finisher adds their sums in the order of the
// warps.
#pragma once

#include "ops/decode_step_input.cuh"

namespace eet {

constexpr int kChunkBytes = kTileRows * kChunkColumns * 2;
constexpr int kTokensOfSet = 4;
constexpr int kTileChunksOfWarp = kTileChunks / kConsumers;  // chunks warp and warp + 8

// Where a warp finds the tokens of the input: chunks of 64 columns, token by token.
template <typename T>
struct TokenAddress {
  uint32_t address = 0, zeros = 0;
  int stride = 0;

  TokenAddress() = default;

  // Of a piece of 16 bytes; of zeros for tokens that there are not.
  __device__ TokenAddress(StepBlock<T>& block, int token, int piece) {
    constexpr int kLine = kChunkColumns * 2;
    const bool exists = token < block.batch();
    zeros = SharedAddress(block.words.zeros);
    address = SharedAddress(block.memory + block.params.memory.input) + token * kLine +
              ((piece ^ token % 8) << 4);
    stride = exists ? block.batch() * kLine : 0;
    if (!exists) address = zeros;
  }

  // Chunks beyond the last are zeros in the tile, and meet tokens that are zeros.
  __device__ uint32_t Of(int chunk, int chunks) const {
    return chunk < chunks ? address + chunk * stride : zeros;
  }
};

// A tile on tensor cores, for four tokens of each set. Weights are the first operand: eight rows
// over 16 columns, and the same rows over the next 16 as its lower half. Of the second operand,
// column 2 * b is token b over the first 16 columns and column 2 * b + 1 over the next 16. So
// outputs lie on the diagonal: row r of token b is [r, 2 * b] + [r + 8, 2 * b + 1], both in one
// lane. No register is padding, and a token's sums have the same order whatever the number of sets.
template <typename T, int kSets>
class TileFragments {
 public:
  using Tokens = uint32_t[kTileChunksOfWarp][kSets][4];
  using Weights = uint32_t[kTileChunksOfWarp][2][4];
  using Sums = float[kTileChunksOfWarp][kSets][4];

  __device__ TileFragments(StepBlock<T>& block, int warp, int lane) : warp_(warp), lane_(lane) {
    const int column = lane % 8, part = lane / 8;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      addresses_[set] = TokenAddress<T>(block, column / 2 + kTokensOfSet * set,
                                        part / 2 * 4 + column % 2 * 2 + part % 2);
    }
    const int row = lane % 8, piece = part / 2 + part % 2 * 2;
    weights_ = warp * kChunkBytes + row * (kChunkColumns * 2) + ((piece ^ row) << 4);
  }

  __device__ __forceinline__ void LoadTokens(int first, int chunks, Tokens& tokens) const {
#pragma unroll
    for (int i = 0; i < kTileChunksOfWarp; ++i) {
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        LoadMatrices(tokens[i][set], addresses_[set].Of(first + warp_ + i * kConsumers, chunks));
      }
    }
  }

  __device__ __forceinline__ void LoadWeights(uint32_t tile, Weights& weights) const {
#pragma unroll
    for (int i = 0; i < kTileChunksOfWarp; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        LoadMatrices(weights[i][half],
                     (tile + weights_ + i * (kConsumers * kChunkBytes)) ^ (half << 6));
      }
    }
  }

  __device__ __forceinline__ static void Multiply(const Tokens& tokens, const Weights& weights,
                                                  Sums& sums) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kTileChunksOfWarp; ++i) {
#pragma unroll
        for (int set = 0; set < kSets; ++set) {
          const uint32_t (&t)[4] = tokens[i][set];
          MmaM16N8K16(sums[i][set], weights[i][half], {t[2 * half], t[2 * half + 1]},
                      std::type_identity<T>{});
        }
      }
    }
  }

  // Writes a unit's sums to [tokens, 8].
  __device__ __forceinline__ void Write(const Sums& sums, int tokens, float* out) const {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int token = lane_ % 4 + kTokensOfSet * set;
      const float (&first)[4] = sums[0][set];
      const float (&second)[4] = sums[1][set];
      if (token < tokens) {
        out[token * kTileRows + lane_ / 4] = (first[0] + first[3]) + (second[0] + second[3]);
      }
    }
  }

 private:
  const int warp_, lane_;
  TokenAddress<T> addresses_[kSets];
  uint32_t weights_;
};

template <typename T, int kSets>
class Multiplier {
 public:
  static constexpr int kTokens = kTokensOfSet * kSets;  // at most
  using Slab = InputSlab<T, kTokens>;

  __device__ explicit Multiplier(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()), fragments_(block, warp_, lane_) {}

  // Multiplies a block's share of a kernel by the input, tile by tile, from `place` on.
  __device__ void Run(const ProductShare& share, Slab& slab, RingPlace& place) {
    if (share.group == 1) {
      RunUnits<1>(share, slab, place);
    } else {
      RunUnits<kUnitGroup>(share, slab, place);
    }
  }

 private:
  using Fragments = TileFragments<T, kSets>;
  using Sums = typename Fragments::Sums;

  template <int kGroup>
  __device__ __forceinline__ void RunUnits(const ProductShare& share, Slab& slab,
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

  // First all loads, those of the tokens before the tile is waited for, then all products.
  __device__ __forceinline__ void MultiplyUnit(int chunks, RingPlace& place, Sums& sums) {
    for (int first = 0; first < chunks; first += kTileChunks) {
      typename Fragments::Tokens tokens;
      typename Fragments::Weights weights;
      fragments_.LoadTokens(first, chunks, tokens);
      fragments_.LoadWeights(SharedAddress(block_.AwaitTile(place)), weights);
      block_.ReleaseTile(place, lane_);
      Fragments::Multiply(tokens, weights, sums);
    }
  }

  // Gives a unit's sums to a finisher.
  __device__ __forceinline__ void HandOver(const Sums& sums) {
    const int batch = block_.batch();
    block_.watch.Until(
        [&] { return block_.words.sums_empty[slot_.stage].TryWait(slot_.parity ^ 1); },
        StepBlock<T>::kSumsWait);
    float* out = reinterpret_cast<float*>(block_.memory + block_.params.memory.sums) +
                 (slot_.stage * kConsumers + warp_) * batch * kTileRows;
    fragments_.Write(sums, batch, out);
    __syncwarp();
    if (lane_ == 0) block_.words.sums_full[slot_.stage].Arrive();
    slot_.Advance(block_.params.memory.sum_slots);
  }

  StepBlock<T>& block_;
  const int warp_, lane_;
  const Fragments fragments_;
  RingPlace slot_;
};

}  // namespace eet
