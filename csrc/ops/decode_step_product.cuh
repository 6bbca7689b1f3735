// The products of the decode step: a consumer warp's part of every tile, on tensor cores.
//
// The warps deal a tile's columns among themselves; a finisher adds their sums in the order of the
// warps.
#pragma once

#include "ops/decode_step_input.cuh"

namespace eet {

// A tile on tensor cores, for four tokens of each set. Weights are the first operand: eight rows
// over 16 columns, and the same rows over the next 16 as its lower half. Of the second operand,
// column 2 * b is token b over the first 16 columns and column 2 * b + 1 over the next 16. So
// outputs lie on the diagonal: row r of token b is [r, 2 * b] + [r + 8, 2 * b + 1], both in one
// lane. No register is padding, and a token's sums have the same order whatever the number of sets.
//
// For tokens that there are not the first is read again: nobody uses those outputs.
template <typename T, int kSets>
class TileFragments {
 public:
  static constexpr int kChunks =
      kTileChunks / kConsumerWarps;  // of the warp: chunks warp, warp + 8

  using Weights = uint32_t[kChunks][2][4];
  using Tokens = uint32_t[kChunks][4];
  using Sums = float[kChunks][kSets][4];
  using Outputs = float[kSets][4];  // what counts of the sums: two parts of each chunk

  __device__ TileFragments(const StepBlock<T>& block, int warp, int lane)
      : warp_(warp), lane_(lane), token_chunk_(block.batch() * kLine) {
    const int row = lane % 8, part = lane / 8;
    const int weight_piece = part / 2 + part % 2 * 2;
    weights_ = warp * kWeightChunk + row * kLine + ((weight_piece ^ row) << 4);
    const int token_piece = part / 2 * 4 + row % 2 * 2 + part % 2;
    const uint32_t input = SharedAddress(block.memory + block.params.memory.input);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int column_token = row / 2 + kTokensOfSet * set;
      const int token = column_token < block.batch() ? column_token : 0;
      tokens_[set] = input + warp * token_chunk_ + token * kLine + ((token_piece ^ token % 8) << 4);
    }
  }

  // Tokens of a set, for a tile that meets the input from chunk `first` on.
  __device__ __forceinline__ void LoadTokens(int first, int set, Tokens& tokens) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      LoadMatrices(tokens[i], tokens_[set] + (first + i * kConsumerWarps) * token_chunk_);
    }
  }

  __device__ __forceinline__ void LoadWeights(uint32_t tile, Weights& weights) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        LoadMatrices(weights[i][half], (tile + weights_ + i * (kConsumerWarps * kWeightChunk)) ^
                                           (half * (kLine / 2)));
      }
    }
  }

  __device__ __forceinline__ static void Multiply(const Tokens& tokens, const Weights& weights,
                                                  int set, Sums& sums) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        MmaM16N8K16(sums[i][set], weights[i][half], {tokens[i][2 * half], tokens[i][2 * half + 1]},
                    std::type_identity<T>{});
      }
    }
  }

  // Writes a unit's sums where the finisher reads them, a line of each token.
  __device__ __forceinline__ void Write(const Outputs& outputs, int tokens, float* lines) const {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int token = lane_ % 4 + kTokensOfSet * set;
      const float (&parts)[4] = outputs[set];
      if (token < tokens) {
        lines[token * kSumsLine + warp_ * kTileRows + lane_ / 4] =
            (parts[0] + parts[1]) + (parts[2] + parts[3]);
      }
    }
  }

  // Puts a unit's sums away, and goes on from there: other elements count for nothing.
  __device__ __forceinline__ static void Keep(const Sums& sums, Outputs& outputs) {
    EachOutput([&](int set, int part, int chunk, int element) {
      outputs[set][part] = sums[chunk][set][element];
    });
  }
  __device__ __forceinline__ static void Resume(const Outputs& outputs, Sums& sums) {
    EachOutput([&](int set, int part, int chunk, int element) {
      sums[chunk][set][element] = outputs[set][part];
    });
  }

 private:
  static constexpr int kLine = kChunkColumns * 2, kWeightChunk = kTileRows * kLine;  // bytes

  template <typename Visit>
  __device__ __forceinline__ static void EachOutput(Visit&& visit) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int part = 0; part < 2 * kChunks; ++part) visit(set, part, part / 2, part % 2 * 3);
    }
  }

  const int warp_, lane_, token_chunk_;
  uint32_t weights_, tokens_[kSets];
};

// kSets: of kTokensOfSet, for the whole batch.
template <typename T, int kSets>
class StepMultiplier {
 public:
  __device__ explicit StepMultiplier(StepBlock<T>& block)
      : block_(block), lane_(LaneId()), fragments_(block, WarpId(), lane_) {}

  // Multiplies a block's share of a kernel by the input, tile by tile, from `place` on.
  template <typename Slab>
  __device__ __forceinline__ void Run(const ProductShare& share, Slab& slab, RingPlace& place) {
    if (share.group == 1) {
      RunUnits<1>(share, slab, place);
    } else {
      RunUnits<UnitGroup(kSets * kTokensOfSet)>(share, slab, place);
    }
  }

 private:
  using Fragments = TileFragments<T, kSets>;
  using Sums = typename Fragments::Sums;
  using Outputs = typename Fragments::Outputs;

  // Each slab of the input is brought once for a group of units; one that is whole is there.
  template <int kGroup, typename Slab>
  __device__ __forceinline__ void RunUnits(const ProductShare& share, Slab& slab,
                                           RingPlace& place) {
    for (int unit = share.begin; unit < share.end; unit += kGroup) {
      Outputs outputs[kGroup] = {};
      for (int first = 0; first < share.chunks; first += share.slab) {
        const int count = min(share.slab, share.chunks - first);
        if (kGroup > 1) slab.BringSlab(first, count);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (unit + i < share.end) MultiplyUnit(count, place, outputs[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (unit + i < share.end) HandOver(outputs[i]);
      }
    }
  }

  // Without a branch: chunks beyond the last are zeros in the tile.
  __device__ __forceinline__ void MultiplyUnit(int chunks, RingPlace& place, Outputs& outputs) {
    Sums sums = {};
    Fragments::Resume(outputs, sums);
    for (int first = 0; first < chunks; first += kTileChunks) {
      typename Fragments::Weights weights;
      typename Fragments::Tokens tokens;
      fragments_.LoadTokens(first, 0, tokens);  // before the tile is waited for
      fragments_.LoadWeights(SharedAddress(block_.AwaitTile(place)), weights);
      block_.ReleaseTile(place, lane_);
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        if (set > 0) fragments_.LoadTokens(first, set, tokens);
        Fragments::Multiply(tokens, weights, set, sums);
      }
    }
    Fragments::Keep(sums, outputs);
  }

  // Gives a unit's sums to a finisher.
  __device__ __forceinline__ void HandOver(const Outputs& outputs) {
    const int batch = block_.batch();
    block_.watch.Until(
        [&] { return block_.words.sums_empty[slot_.stage].TryWait(slot_.parity ^ 1); },
        StepBlock<T>::kSumsWait);
    float* lines = reinterpret_cast<float*>(block_.memory + block_.params.memory.sums) +
                   slot_.stage * batch * kSumsLine;
    fragments_.Write(outputs, batch, lines);
    __syncwarp();
    block_.words.sums_full[slot_.stage].ArriveAsWarp(lane_);
    slot_.Advance(block_.params.memory.sum_slots);
  }

  StepBlock<T>& block_;
  const int lane_;
  const Fragments fragments_;
  RingPlace slot_;
};

}  // namespace eet
