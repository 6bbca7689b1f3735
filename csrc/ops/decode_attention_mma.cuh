// Decode attention on tensor cores, for 2-byte types. Query heads of a KV head are the eight
// columns of the products; keys, and then columns of values, the sixteen rows. Each warp streams
// tiles of keys and values through shared memory of its own, so that no barrier ever empties the
// pipeline.
#pragma once

#include "core/mma.cuh"
#include "core/shared_tile.cuh"
#include "ops/decode_attention_split.cuh"

namespace eet {

constexpr int kStreamKeys = 16;  // of a tile

// 64 KiB of tiles a block, 48 for 96 columns, so that a GPU of 100 KiB holds one and Hopper three.
template <int kDim>
struct StreamShape {
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;
  static constexpr int kStages = kDim <= 64 ? 4 : 2;
  static constexpr int kTile = kStreamKeys * kDim;  // elements
  static constexpr int kSharedBytes = kWarps * kStages * 2 * kTile * 2;
  static_assert(sizeof(WarpResults<kWarps, kDim>) <= kSharedBytes);
};

// A warp's tiles on their way through shared memory: every kWarps-th of the split.
template <typename T, int kDim>
class KeyStream {
  using Shape = StreamShape<kDim>;

 public:
  // The first tile is at key `first`.
  __device__ KeyStream(const DecodeAttentionArgs<T>& args, const SplitBlock& block, int first,
                       T* memory)
      : args_(args), block_(block), memory_(memory), next_key_(first) {
    FindPage();
    for (int stage = 0; stage < Shape::kStages; ++stage) Start(stage);
  }

  __device__ void Wait() const {
    WaitCopies<Shape::kStages - 1>();
    __syncwarp();  // the other lanes' copies are here too
  }

  __device__ SharedTile<T, kDim> Keys() const { return {memory_ + 2 * stage_ * Shape::kTile}; }

  __device__ SharedTile<T, kDim> Values() const { return {Keys().data + Shape::kTile}; }

  // Gives the tile's memory to the next one.
  __device__ void Advance() {
    __syncwarp();  // all lanes have read it
    Start(stage_);
    stage_ = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
  }

 private:
  // Copies a tile; what no query sees, and the columns past head_dim, become zeros.
  __device__ void Start(int stage) {
    if (next_key_ < block_.keys.end) {
      const SharedTile<T, kDim> keys{memory_ + 2 * stage * Shape::kTile};
      const SharedTile<T, kDim> values{keys.data + Shape::kTile};
      constexpr int kChunks = SharedTile<T, kDim>::kChunks;
      const int lane = threadIdx.x % kWarpSize;
      const int64_t offset =
          KeyOffset(args_, page_, block_.kv_head, next_key_ + lane % kStreamKeys);
#pragma unroll
      for (int i = lane; i < kStreamKeys * kChunks; i += kWarpSize) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int64_t from = __shfl_sync(kFullMask, offset, row) + chunk * kChunk;
        const bool valid = block_.keys.Contains(next_key_ + row) && chunk * kChunk < args_.head_dim;
        CopyAsync16(keys.Chunk(row, chunk), args_.k + (valid ? from : 0), valid);
        CopyAsync16(values.Chunk(row, chunk), args_.v + (valid ? from : 0), valid);
      }
    }
    CommitCopies();
    next_key_ += Shape::kWarps * kStreamKeys;
    FindPage();
  }

  // Of this lane's key of the next tile, a tile ahead: the table must not delay the copies.
  __device__ void FindPage() {
    const int key = next_key_ + threadIdx.x % kStreamKeys;
    page_ = block_.keys.Contains(key) ? PageOf(args_, block_.row, key) : 0;
  }

  const DecodeAttentionArgs<T>& args_;
  const SplitBlock& block_;
  T* memory_;  // [kStages, 2, kTile]
  int next_key_, page_ = 0, stage_ = 0;
};

// A lane's two query heads, lane % 4 * 2 and the next, as operands: all columns of head lane / 4.
template <typename T, int kDim>
struct HeadFragments {
  uint32_t columns[kDim / 16][2];
  float slopes[2];

  __device__ HeadFragments(const DecodeAttentionArgs<T>& args, const SplitBlock& block) {
    const int group = threadIdx.x % kWarpSize / 4, pair = threadIdx.x % 4 * 2;
    const T* q = args.q + (block.token * args.heads + block.first_head + group) * args.head_dim;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const bool valid = group < block.heads && 8 * i < args.head_dim;
      columns[i / 2][i % 2] = valid ? *reinterpret_cast<const uint32_t*>(q + 8 * i + pair) : 0;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool valid = args.alibi_slopes && pair + i < block.heads;
      slopes[i] = valid ? args.alibi_slopes[block.first_head + pair + i] : 0.0f;
    }
  }
};

// What a warp has accumulated. Element [n][2 * i + j] is of column 16 * n + 8 * i + lane / 4 and
// head lane % 4 * 2 + j.
template <int kDim>
struct StreamOutput {
  float sums[kDim / 16][4] = {};
  SoftmaxState softmax[2];  // sums over this lane's keys only
};

// One lane's scores or weights: element 2 * i + j is of key 8 * i + lane / 4, head lane % 4 * 2 +
// j.
using StreamScores = float[4];

template <typename T, int kDim>
__device__ void Products(const SharedTile<T, kDim>& keys, const HeadFragments<T, kDim>& heads,
                         StreamScores& scores) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    uint32_t a[4];
    LoadMatrices(a, keys.Chunk(lane % 16, 2 * n + lane / 16));
    MmaM16N8K16(scores, a, heads.columns[n], std::type_identity<T>{});
  }
}

// From products to weights, and all before in proportion.
template <typename T, int kDim>
__device__ void ToWeights(const DecodeAttentionArgs<T>& args, const SplitBlock& block,
                          const float (&slopes)[2], int tile_key, StreamScores& scores,
                          StreamOutput<kDim>& output) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = tile_key + i / 2 * 8 + threadIdx.x % kWarpSize / 4;
    scores[i] = Score(scores[i], args.scale, args.soft_cap);
    scores[i] += AlibiTerm(slopes[i % 2], key, block.position);
    if (!block.keys.Contains(key)) scores[i] = -INFINITY;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    SoftmaxState& softmax = output.softmax[j];
    float largest = fmaxf(scores[j], scores[2 + j]);
#pragma unroll
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, lanes));
    }
    const float factor = softmax.Raise(largest);
#pragma unroll
    for (int i = j; i < 4; i += 2) {
      scores[i] = softmax.Weight(scores[i]);
      softmax.sum += scores[i];
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) output.sums[n][i] *= factor;
    }
  }
}

template <typename T, int kDim>
__device__ void AddValues(const SharedTile<T, kDim>& values, const StreamScores& weights,
                          StreamOutput<kDim>& output) {
  constexpr std::type_identity<T> kType;
  const int lane = threadIdx.x % kWarpSize;
  const uint32_t b[2] = {TransposeMatrix(PackPair(weights[0], weights[1], kType)),
                         TransposeMatrix(PackPair(weights[2], weights[3], kType))};
#pragma unroll
  for (int n = 0; n < kDim / 16; ++n) {
    uint32_t a[4];
    LoadMatricesTransposed(a, values.Chunk(lane / 16 * 8 + lane % 8, 2 * n + lane / 8 % 2));
    MmaM16N8K16(output.sums[n], a, b, kType);
  }
}

template <int kWarps, int kDim>
__device__ void WriteResults(StreamOutput<kDim>& output, WarpResults<kWarps, kDim>& results) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int head = lane % 4 * 2 + j;
    SoftmaxState& softmax = output.softmax[j];
#pragma unroll
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      softmax.sum += __shfl_xor_sync(kFullMask, softmax.sum, lanes);
    }
    if (lane < 4) results.states[warp][head] = softmax;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      results.sums[warp][head][8 * n + lane / 4] = output.sums[n / 2][n % 2 * 2 + j];
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(StreamShape<kDim>::kWarps* kWarpSize)
    DecodeMmaKernel(DecodeAttentionArgs<T> args) {
  using Shape = StreamShape<kDim>;
  extern __shared__ __align__(128) char memory[];
  LetNextKernelStart();
  WaitForKernelsBefore();
  const SplitBlock block = ThisBlock(args);
  if (block.keys.empty()) return;
  const int warp = threadIdx.x / kWarpSize;
  const int first = block.keys.begin / kStreamKeys * kStreamKeys + warp * kStreamKeys;
  T* tiles = reinterpret_cast<T*>(memory) + warp * Shape::kStages * 2 * Shape::kTile;
  KeyStream<T, kDim> stream(args, block, first, tiles);
  const HeadFragments<T, kDim> heads(args, block);
  StreamOutput<kDim> output;
  for (int key = first; key < block.keys.end; key += Shape::kWarps * kStreamKeys) {
    StreamScores scores = {};
    stream.Wait();
    Products(stream.Keys(), heads, scores);
    ToWeights(args, block, heads.slopes, key, scores, output);
    AddValues(stream.Values(), scores, output);
    stream.Advance();
  }
  auto& results = *reinterpret_cast<WarpResults<Shape::kWarps, kDim>*>(memory);
  __syncthreads();  // the results take the place of all warps' tiles
  WriteResults(output, results);
  __syncthreads();
  WritePartials(args, block, results);
}

}  // namespace eet
