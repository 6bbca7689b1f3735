// Decode attention on tensor cores, for 2-byte types. Query heads of a KV head are the eight
// columns of the products; keys, and then columns of values, the sixteen rows.
//
// Its time is that of reading all keys and values once, so nothing may come between a warp and its
// loads. A warp does whole items alone and writes their results itself: no other warp is ever
// waited for. As many warps as the GPU holds go from item to item, and the stream of keys is ahead.
#pragma once

#include "ops/decode_attention_stream.cuh"

namespace eet {

template <class KeyStream>
class ItemAttender {
  using T = typename KeyStream::T;
  static constexpr int kDim = KeyStream::kDim;

 public:
  // memory: of this warp, for its tiles.
  __device__ ItemAttender(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes,
                          const typename KeyStream::Source& source,
                          typename KeyStream::Memory& memory)
      : args_(args),
        lane_(LaneId()),
        group_(lane_ / 4),
        pair_(lane_ % 4 * 2),
        stream_(args, sizes, source, lane_, memory) {}

  // All items of this warp. One call of each step, so that the code is small: each launch has to
  // bring it to the multiprocessors anew.
  __device__ void Run() {
    Heads heads;
    Output output;
    bool waits = true;
    int stage = 0, parity = 1, ahead = 0;
#pragma unroll 1
    for (;;) {
      const bool full = ahead == KeyStream::kStages - 1;
      if (waits && (full || !args_.cache_is_ready || !stream_.NextIsOld())) {
        WaitForDependencies();
        waits = false;
      }
      stream_.Start(stage);
      if (++stage == KeyStream::kStages) {
        stage = 0;
        parity ^= 1;
      }
      if (!full) {
        ++ahead;
        continue;
      }
      const StreamTile& tile = stream_.Oldest(stage);
      const int events = Uniform(tile.events);
      if (!(events & StreamTile::kExists)) return;
      if (events & StreamTile::kBeginsItem) heads = LoadHeads(tile);
      stream_.Await(tile, events, stage, parity);
      Attend(tile, events, heads, stream_.Keys(stage), stream_.Values(stage), output);
      if (!(events & StreamTile::kEndsItem)) continue;
      Write(tile, output);
      output = {};
    }
  }

 private:
  using Tile = typename KeyStream::Tile;
  static constexpr std::type_identity<T> kType = {};

  // The query heads as operands: all columns of head group; and the slopes of this lane's scores.
  struct Heads {
    uint32_t columns[kDim / 16][2];
    float slopes[2];
  };

  // What has been accumulated. Element [n][2 * i + j] is of column 16 * n + 8 * i + group and head
  // pair + j.
  struct Output {
    float sums[kDim / 16][4] = {};
    SoftmaxState softmax[2];  // sums over this lane's keys only
  };

  // This lane's scores or weights of sixteen keys: element 2 * i + j is of key 8 * i + group and
  // head pair + j.
  using Scores = float[4];
  static constexpr int kHalves = KeyStream::kKeys / 16;

  __device__ Heads LoadHeads(const StreamTile& tile) const {
    Heads heads;
    const T* q = args_.q + HeadOffset(tile) + pair_;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const bool valid = group_ < tile.heads && 8 * i < args_.head_dim;
      heads.columns[i / 2][i % 2] = valid ? *reinterpret_cast<const uint32_t*>(q + 8 * i) : 0;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool valid = args_.alibi_slopes && pair_ + j < tile.heads;
      heads.slopes[j] = valid ? args_.alibi_slopes[tile.first_head + pair_ + j] : 0.0f;
    }
    return heads;
  }

  // Where head `group` of an item starts in q and out.
  __device__ int64_t HeadOffset(const StreamTile& tile) const {
    return (tile.token * args_.heads + tile.first_head + group_) * args_.head_dim;
  }

  __device__ void Attend(const StreamTile& tile, int events, const Heads& heads, const Tile& keys,
                         const Tile& values, Output& output) const {
    Scores scores[kHalves] = {};
#pragma unroll
    for (int half = 0; half < kHalves; ++half) Score(keys, half, heads, scores[half]);
    Finish(tile, events, heads, scores);
    ToWeights(scores, output);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) AddValues(values, half, scores[half], output);
  }

  // In two sums, so that products need not wait for each other.
  __device__ void Score(const Tile& keys, int half, const Heads& heads, Scores& scores) const {
    Scores more = {};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t a[4];
      LoadMatrices(a, keys.Chunk(16 * half + lane_ % 16, 2 * n + lane_ / 16));
      MmaM16N8K16(n % 2 ? more : scores, a, heads.columns[n], kType);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] += more[i];
  }

  // From products to scores.
  __device__ void Finish(const StreamTile& tile, int events, const Heads& heads,
                         Scores (&scores)[kHalves]) const {
    const auto for_each = [&](const auto& f) {
#pragma unroll
      for (int i = 0; i < 4 * kHalves; ++i) {
        f(scores[i / 4][i % 4], i % 2, i / 4 * 16 + i % 4 / 2 * 8 + group_);
      }
    };
    if (args_.soft_cap == 0.0f && !args_.alibi_slopes) {
      const float scale = args_.scale * kLog2E;
      for_each([&](float& score, int, int) { score *= scale; });
    } else {
      for_each([&](float& score, int head, int key) {
        score = eet::Score(score, args_.scale, args_.soft_cap) +
                AlibiTerm(heads.slopes[head], tile.key + key, tile.position);
      });
    }
    if (events & StreamTile::kIsWhole) return;
    for_each([&](float& score, int, int key) {
      if (!tile.Contains(tile.key + key)) score = -INFINITY;
    });
  }

  // From scores to weights, and all before in proportion.
  __device__ void ToWeights(Scores (&scores)[kHalves], Output& output) const {
    float factors[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float largest = -INFINITY;
#pragma unroll
      for (Scores& half : scores) largest = fmaxf(largest, fmaxf(half[j], half[2 + j]));
      SoftmaxState& softmax = output.softmax[j];
      factors[j] = softmax.Raise(AcrossKeys<Max>(largest));
#pragma unroll
      for (Scores& half : scores) {
#pragma unroll
        for (int i = j; i < 4; i += 2) {
          half[i] = softmax.Weight(half[i]);
          softmax.sum += half[i];
        }
      }
    }
    // As a rule no maximum rises.
    if (!__any_sync(kFullMask, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) output.sums[n][i] *= factors[i % 2];
    }
  }

  __device__ void AddValues(const Tile& values, int half, const Scores& weights,
                            Output& output) const {
    const uint32_t b[2] = {TransposeMatrix(PackPair(weights[0], weights[1], kType)),
                           TransposeMatrix(PackPair(weights[2], weights[3], kType))};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t a[4];
      LoadMatricesTransposed(
          a, values.Chunk(16 * half + lane_ / 16 * 8 + lane_ % 8, 2 * n + lane_ / 8 % 2));
      MmaM16N8K16(output.sums[n], a, b, kType);
    }
  }

  // What has become of an item.
  __device__ void Write(const StreamTile& tile, Output& output) const {
    for (SoftmaxState& softmax : output.softmax) softmax.sum = AcrossKeys<Sum>(softmax.sum);
    if (tile.splits == 1) {
      WriteAttended(tile, output);
    } else {
      WritePartial(tile, output);
    }
  }

  // For the merge.
  __device__ void WritePartial(const StreamTile& tile, const Output& output) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int head = pair_ + j;
      if (head >= tile.heads) break;
      const Partial partial = PartialOf(args_, tile.token, tile.first_head + head, tile.split);
      if (group_ == 0) *partial.state = output.softmax[j];
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        if (8 * i >= args_.head_dim) break;
        partial.sums[8 * i + group_] = output.sums[i / 2][i % 2 * 2 + j];
      }
    }
  }

  // The attended heads, where there is nothing to merge. After the transposition a lane has columns
  // of head group, so that it writes words.
  __device__ void WriteAttended(const StreamTile& tile, const Output& output) const {
    T* out = args_.out + HeadOffset(tile) + pair_;
    const float factors[2] = {output.softmax[0].Normalizer(), output.softmax[1].Normalizer()};
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const float* sums = &output.sums[i / 2][i % 2 * 2];
      const uint32_t word =
          TransposeMatrix(PackPair(sums[0] * factors[0], sums[1] * factors[1], kType));
      const bool valid = group_ < tile.heads && 8 * i < args_.head_dim;
      if (valid) *reinterpret_cast<uint32_t*>(out + 8 * i) = word;
    }
  }

  // Over the keys of a tile, which the lanes of a head share.
  template <typename Op>
  __device__ static float AcrossKeys(float value, Op op = {}) {
#pragma unroll
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      value = op(value, __shfl_xor_sync(kFullMask, value, lanes));
    }
    return value;
  }

  const DecodeAttentionArgs<T>& args_;
  const unsigned lane_;
  const int group_, pair_;  // of the lane's element of a product
  KeyStream stream_;
};

// TMA reads `source` where the launch has put it.
template <class KeyStream>
__global__ void __launch_bounds__(StreamShape<KeyStream::kDim>::kThreads,
                                  StreamShape<KeyStream::kDim>::kBlocks)
    DecodeMmaKernel(const __grid_constant__ DecodeAttentionArgs<typename KeyStream::T> args,
                    const __grid_constant__ ItemSizes sizes,
                    const __grid_constant__ typename KeyStream::Source source) {
#ifdef __CUDA_ARCH__
  if constexpr (__CUDA_ARCH__ >= KeyStream::kArchitecture) {
    extern __shared__ __align__(1024) char memory[];
    // The next kernel may count on those preceding this one only if this one has waited for
    // them.
    if (!args.cache_is_ready) WaitForDependencies();
    LaunchDependents();
    auto* of_warps = reinterpret_cast<typename KeyStream::Memory*>(memory);
    ItemAttender<KeyStream>(args, sizes, source, of_warps[threadIdx.x / kWarpSize]).Run();
  }
#endif
}

}  // namespace eet
