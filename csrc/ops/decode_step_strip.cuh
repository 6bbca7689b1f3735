// Attention of the decode step within a tile: strips of 16 keys, as tensor cores take them, each
// with a softmax of its own over all tiles of an item. At the item's end its strips are combined
// through shared memory. So it changes no bit whether one warp has all strips of a tile, or a team
// of warps has one each.
#pragma once

#include "ops/decode_step_block.cuh"
#include "ops/decode_step_split.cuh"

namespace eet {

// Keys, or values, of a tile, as MakeRowTiles lays them out.
template <typename T, int kDim>
struct CacheTile {
  static constexpr int kKeys = int(StepTileKeys(kDim));
  static_assert(2 * kKeys * kDim * 2 == kTileBytes);
  static constexpr int kStrips = kKeys / kStripKeys;
  static constexpr int kHalf = kTileBytes / 2;

  char* data;

  __device__ T* Piece(int key, int piece) const {
    return reinterpret_cast<T*>(data + piece / 8 * (kKeys * kChunkColumns * 2) +
                                key * (kChunkColumns * 2) + ((piece % 8 ^ key % 8) << 4));
  }
};

// The second operand of the scores: head lane / 4 of the item.
template <int kDim>
using Queries = uint32_t[kDim / 16][2];

// A token's own key and value: words lane, lane + 32, ... of them.
template <int kDim>
struct NewKey {
  static constexpr int kWords = kDim / 2 / kWarpSize;
  uint32_t key[kWords], value[kWords];
};

// What a warp has of one strip of all tiles.
template <typename T, int kDim>
class Strip {
 public:
  using Tile = CacheTile<T, kDim>;

  // Takes in keys first_key + row, ... of a tile, of which the item sees some.
  __device__ __forceinline__ void Attend(char* data, int first_key, int row, const KeyRange& seen,
                                         float scale, const Queries<kDim>& queries, int lane) {
    const Tile keys{data}, values{data + Tile::kHalf};
    constexpr std::type_identity<T> kType;
    // Of keys row + 8 * i + lane / 4 and heads lane % 4 * 2 + j, in scores[2 * i + j]; two sums, so
    // that products need not wait for each other.
    float scores[4] = {}, more[4] = {};
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      uint32_t a[4];
      LoadMatrices(a, keys.Piece(row + lane % 16, 2 * n + lane / 16));
      MmaM16N8K16(n % 2 ? more : scores, a, queries[n], kType);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool visible = seen.Contains(first_key + row + 8 * i + lane / 4);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = scores[2 * i + j];
        score = visible ? Score(score + more[2 * i + j], scale, 0.0f) : -INFINITY;
      }
    }
    float factors[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      factors[j] = softmax_[j].Raise(Across(fmaxf(scores[j], scores[2 + j]), Max{}));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + j];
        score = softmax_[j].Weight(score);
        softmax_[j].sum += score;
      }
    }
    const uint32_t weights[2] = {TransposeMatrix(PackPair(scores[0], scores[1], kType)),
                                 TransposeMatrix(PackPair(scores[2], scores[3], kType))};
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      uint32_t a[4];
      LoadMatricesTransposed(a, values.Piece(row + lane / 16 * 8 + lane % 8, 2 * n + lane / 8 % 2));
#pragma unroll
      for (int c = 0; c < 4; ++c) sums_[n][c] *= factors[c % 2];
      MmaM16N8K16(sums_[n], a, weights, kType);
    }
  }

  // Puts the token's key and value into row `own` of a tile, in the strip from `row` on. The
  // strip's rows behind, which nobody has written, become zeros: zero times whatever is there might
  // be NaN.
  __device__ __forceinline__ static void Insert(char* data, int row, int own,
                                                const NewKey<kDim>& newest, int lane) {
    const Tile keys{data}, values{data + Tile::kHalf};
#pragma unroll
    for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
      const int column = 2 * (lane + i * kWarpSize);
      reinterpret_cast<uint32_t*>(keys.Piece(own, column / 8))[column % 8 / 2] = newest.key[i];
      reinterpret_cast<uint32_t*>(values.Piece(own, column / 8))[column % 8 / 2] = newest.value[i];
    }
    constexpr int kPieces = kDim / 8;
    for (int i = (own + 1) * kPieces + lane; i < (row + kStripKeys) * kPieces; i += kWarpSize) {
      *reinterpret_cast<uint4*>(values.Piece(i / kPieces, i % kPieces)) = {};
    }
    __syncwarp();
  }

  // Writes what the warp has to the place of the strip among `data`.
  __device__ __forceinline__ void Write(char* data, int strip, int lane) const {
    float* sums = Sums(data, strip);
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sums[(lane % 4 * 2 + c % 2) * kLine + 16 * n + c / 2 * 8 + lane / 4] = sums_[n][c];
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float sum = Across(softmax_[j].sum, Sum{});
      if (lane < 4) States(data)[strip * kItemHeads + lane * 2 + j] = {softmax_[j].max, sum};
    }
  }

  // Two columns of one head over all strips, the weighted values already divided by the weights'
  // sum, and the logarithm of that sum.
  struct Combined {
    float2 values;
    float log_sum;
  };

  __device__ __forceinline__ static Combined Combine(char* data, int head, int column) {
    float2 states[Tile::kStrips];
    float largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int strip = 0; strip < Tile::kStrips; ++strip) {
      states[strip] = States(data)[strip * kItemHeads + head];
      largest = fmaxf(largest, states[strip].x);
    }
    float2 values = {};
#pragma unroll
    for (int strip = 0; strip < Tile::kStrips; ++strip) {
      const float weight = Exp2(states[strip].x - (largest == -INFINITY ? 0.0f : largest));
      const float2 part =
          *reinterpret_cast<const float2*>(Sums(data, strip) + head * kLine + column);
      values = {fmaf(weight, part.x, values.x), fmaf(weight, part.y, values.y)};
      sum = fmaf(weight, states[strip].y, sum);
    }
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    return {{values.x * factor, values.y * factor}, largest + __log2f(sum)};
  }

 private:
  static constexpr int kFragments = kDim / 16;
  static constexpr int kLine = kDim + 4;  // so that banks do not collide
  static constexpr int kStatesAt = Tile::kStrips * kItemHeads * kLine * 4;
  static_assert(kStatesAt + Tile::kStrips * kItemHeads * int(sizeof(float2)) <= kTileBytes);

  __device__ static float* Sums(char* data, int strip) {
    return reinterpret_cast<float*>(data) + strip * kItemHeads * kLine;
  }

  // Maximum and sum of weights, of each strip and head.
  __device__ static float2* States(char* data) {
    return reinterpret_cast<float2*>(data + kStatesAt);
  }

  // Over the lanes that have the same heads.
  template <typename Op>
  __device__ static float Across(float value, Op op) {
#pragma unroll
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      value = op(value, __shfl_xor_sync(kFullMask, value, lanes));
    }
    return value;
  }

  // Element [n][2 * i + j] is of column 16 * n + 8 * i + lane / 4 and head lane % 4 * 2 + j.
  float sums_[kFragments][4] = {};
  SoftmaxState softmax_[2];  // sums over this lane's keys only
};

}  // namespace eet
