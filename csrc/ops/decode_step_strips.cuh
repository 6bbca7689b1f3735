// What a warp of the decode step's attention does with a tile of the cache, a strip of sixteen keys
// at a time.
#pragma once

#include "core/round.h"
#include "ops/decode_step_cache_tile.cuh"
#include "ops/softmax.h"

namespace eet {

// What up to eight heads have attended to over some keys. Element [n][2 * i + j] is of column 16 *
// n + 8 * i + lane / 4 and head lane % 4 * 2 + j.
template <int kDim>
struct AttentionOutput {
  static constexpr int kFragments = kDim / 16;

  float sums[kFragments][4] = {};
  SoftmaxState softmax[2];  // sums over this lane's keys only

  // Takes in the output of other keys.
  __device__ __forceinline__ void Merge(const AttentionOutput& other) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto [before, factor] = softmax[j].Merge(other.softmax[j]);
#pragma unroll
      for (int n = 0; n < kFragments; ++n) {
#pragma unroll
        for (int i = j; i < 4; i += 2) {
          sums[n][i] = sums[n][i] * before + other.sums[n][i] * factor;
        }
      }
    }
  }
};

// The second operand of the scores: head lane / 4 of the item.
template <int kDim>
using AttentionQueries = uint32_t[kDim / 16][2];

// The token's own key and value: words lane, lane + 32, ... of them.
template <int kDim>
struct NewKey {
  static constexpr int kHeadWords = kDim / 2;
  static constexpr int kWords = CeilDiv(kHeadWords, kWarpSize);

  uint32_t key[kWords], value[kWords];

  __device__ static bool HasWord(int i, int lane) {
    return kHeadWords % kWarpSize == 0 || lane + i * kWarpSize < kHeadWords;
  }
};

template <typename T, int kDim>
class StripAttender {
 public:
  using Tile = CacheTile<T, kDim>;
  using Output = AttentionOutput<kDim>;
  using Queries = AttentionQueries<kDim>;
  static constexpr int kStripKeys = Tile::kStrip, kStrips = Tile::kKeys / kStripKeys;

  __device__ StripAttender(float scale, int lane) : scale_(scale), lane_(lane) {}

  // Takes strip `strip` of the tile at `data`, whose first key is `tile_key`, into the output.
  __device__ __forceinline__ void Attend(char* data, int strip, const KeyRange& visible,
                                         int tile_key, const Queries& queries,
                                         Output& output) const {
    const Tile keys{data}, values{data + Tile::kHalf};
    const int first = strip * kStripKeys;
    Scores scores = {};
    Score(keys, first, queries, scores);
    ToWeights(visible, tile_key + first, scores, output);
    AddValues(values, first, scores, output);
  }

  // Puts the token's key and value into row `row` of a tile, if that is among the rows from `begin`
  // on before `end`. Of these, the rows behind it, which nobody has written, become zeros: zero
  // times whatever is there might be NaN.
  __device__ __forceinline__ void Insert(char* data, int row, int begin, int end,
                                         const NewKey<kDim>& newest) const {
    const Tile keys{data}, values{data + Tile::kHalf};
#pragma unroll
    for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
      if (row < begin || row >= end || !NewKey<kDim>::HasWord(i, lane_)) break;
      const int column = 2 * (lane_ + i * kWarpSize);
      reinterpret_cast<uint32_t*>(keys.Piece(row, column / 8))[column % 8 / 2] = newest.key[i];
      reinterpret_cast<uint32_t*>(values.Piece(row, column / 8))[column % 8 / 2] = newest.value[i];
    }
    for (int i = max(row + 1, begin) * kPieces + lane_; i < end * kPieces; i += kWarpSize) {
      *reinterpret_cast<uint4*>(values.Piece(i / kPieces, i % kPieces)) = {};
    }
    FenceAsyncProxy();  // TMA writes here next
    __syncwarp();
  }

  // Leaves a strip's output in its place of the tile, for another warp.
  __device__ __forceinline__ void Leave(char* data, int strip, const Output& output) const {
    __syncwarp();  // all lanes have read the strip
#pragma unroll
    for (int n = 0; n < Output::kFragments; ++n) {
      const float (&sums)[4] = output.sums[n];
      *SumsAt(data, strip, n) = {sums[0], sums[1], sums[2], sums[3]};
    }
    const SoftmaxState(&softmax)[2] = output.softmax;
    *StatesAt(data, strip) = {softmax[0].max, softmax[0].sum, softmax[1].max, softmax[1].sum};
    FenceAsyncProxy();
  }

  __device__ __forceinline__ Output Take(char* data, int strip) const {
    Output output;
#pragma unroll
    for (int n = 0; n < Output::kFragments; ++n) {
      const Four sums = *SumsAt(data, strip, n);
#pragma unroll
      for (int i = 0; i < 4; ++i) output.sums[n][i] = sums.values[i];
    }
    const Four states = *StatesAt(data, strip);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      output.softmax[j].max = states.values[2 * j];
      output.softmax[j].sum = states.values[2 * j + 1];
    }
    return output;
  }

 private:
  static constexpr int kPieces = kDim / 8;  // of 16 bytes, in a row

  struct alignas(16) Four {
    float values[4];
  };

  // A strip of scores or weights: element 2 * i + j is of key 8 * i + lane / 4 and head
  // lane % 4 * 2 + j.
  using Scores = float[4];

  // Where a lane leaves four floats of a strip: its keys have room for all sums, its values for
  // what else there is.
  __device__ Four* SumsAt(char* data, int strip, int n) const {
    const int piece = n * kWarpSize + lane_;
    return At(Tile{data}, strip * kStripKeys + piece / kPieces, piece % kPieces);
  }

  __device__ Four* StatesAt(char* data, int strip) const {
    const Tile values{data + Tile::kHalf};
    return At(values, strip * kStripKeys + lane_ / kPieces, lane_ % kPieces);
  }

  __device__ static Four* At(const Tile& tile, int row, int piece) {
    return reinterpret_cast<Four*>(tile.Piece(row, piece));
  }

  // In two sums, so that products need not wait for each other.
  __device__ __forceinline__ void Score(const Tile& keys, int key, const Queries& queries,
                                        Scores& scores) const {
    Scores more = {};
#pragma unroll
    for (int n = 0; n < Output::kFragments; ++n) {
      uint32_t a[4];
      LoadMatrices(a, keys.Piece(key + lane_ % 16, 2 * n + lane_ / 16));
      MmaM16N8K16(n % 2 ? more : scores, a, queries[n], std::type_identity<T>{});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] += more[i];
  }

  // From products to weights, and all before in proportion.
  __device__ __forceinline__ void ToWeights(const KeyRange& visible, int first_key, Scores& scores,
                                            Output& output) const {
    float factors[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      SoftmaxState& softmax = output.softmax[j];
      float largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + j];
        const bool seen = visible.Contains(first_key + 8 * i + lane_ / 4);
        score = seen ? eet::Score(score, scale_, 0.0f) : -INFINITY;
        largest = fmaxf(largest, score);
      }
#pragma unroll
      for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, lanes));
      }
      factors[j] = softmax.Raise(largest);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + j];
        score = softmax.Weight(score);
        softmax.sum += score;
      }
    }
#pragma unroll
    for (int n = 0; n < Output::kFragments; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) output.sums[n][c] *= factors[c % 2];
    }
  }

  __device__ __forceinline__ void AddValues(const Tile& values, int key, const Scores& weights,
                                            Output& output) const {
    constexpr std::type_identity<T> kType;
    const uint32_t b[2] = {TransposeMatrix(PackPair(weights[0], weights[1], kType)),
                           TransposeMatrix(PackPair(weights[2], weights[3], kType))};
#pragma unroll
    for (int n = 0; n < Output::kFragments; ++n) {
      uint32_t a[4];
      LoadMatricesTransposed(a,
                             values.Piece(key + lane_ / 16 * 8 + lane_ % 8, 2 * n + lane_ / 8 % 2));
      MmaM16N8K16(output.sums[n], a, b, kType);
    }
  }

  const float scale_;
  const int lane_;
};

}  // namespace eet
