// Linear for few rows on GPUs other than Hopper, bfloat16 and float16: a kernel read once at memory
// speed.
//
// Tensor cores take the weights as their 16-row operand and up to eight rows of x, here called
// tokens, as the other. A block computes 16 or 32 adjacent outputs; its warps deal the columns
// among themselves in groups of 128, and their sums are added in the order of the warps. Which warp
// takes which columns depends on the size of the kernel alone, and so do a token's bits.
#include <algorithm>

#include "core/launch.cuh"
#include "core/mma.cuh"
#include "core/round.h"
#include "core/vector.cuh"
#include "ops/linear_decode.cuh"

namespace eet {

constexpr int kOuts = 16;        // of one product
constexpr int kTokens = 8;       // of one product
constexpr int kChunk = 32;       // columns of one 16-byte load per lane: two products
constexpr int kGroupChunks = 4;  // neighbours that one warp takes
constexpr int kGroup = kChunk * kGroupChunks;
constexpr int kTileStride = 20;  // floats per token of a tile of sums: no bank conflicts, and even
constexpr int kTileFloats = kTokens * kTileStride;

// Where a lane finds its operands.
template <typename T, int kOutTiles, int kWarps>
struct LinearColumns {
  const T* kernel[kOutTiles][2];  // its rows
  const T* x;                     // its token of the first tile
  int in, tokens;                 // columns; tokens that exist from its own on
  int first;                      // its first column of the warp's first chunk

  __device__ LinearColumns(const T* kernel_rows, const T* tokens_rows, int64_t cols, int outs,
                           int token_count) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
    for (int i = 0; i < kOutTiles * 2; ++i) {
      // Outputs that do not exist get the last one's weights; nobody reads their sums.
      const int row = min(i * kOuts / 2 + lane / 4, outs - 1);
      kernel[i / 2][i % 2] = kernel_rows + row * cols;
    }
    x = tokens_rows + lane / 4 * cols;
    in = int(cols);
    tokens = token_count - lane / 4;
    first = warp * kGroup + lane % 4 * 8;
  }

  // The lane's first column of the warp's chunk `index`, the first of a stage.
  __device__ int At(int index) const {
    return first + index / kGroupChunks * (kWarps * kGroup) + index % kGroupChunks * kChunk;
  }
};

// Weights of a few chunks, on their way to the registers while others are multiplied, and, where
// there is one tile of tokens, its part of x.
template <typename T, int kTokenTiles, int kOutTiles, int kWarps>
struct LinearStage {
  using Columns = LinearColumns<T, kOutTiles, kWarps>;
  static constexpr int kChunks = kGroupChunks / kOutTiles;
  static constexpr bool kHasTokens = kTokenTiles == 1;

  uint4 weights[kChunks][kOutTiles][2];
  uint4 tokens[kHasTokens ? kChunks : 1];

  __device__ __forceinline__ void Load(const Columns& columns, int first) {
    const int col = columns.At(first);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const bool exists = col + i * kChunk < columns.in;
#pragma unroll
      for (int tile = 0; tile < kOutTiles; ++tile) {
        weights[i][tile][0] = LoadStreamed(columns.kernel[tile][0] + col + i * kChunk, exists);
        weights[i][tile][1] = LoadStreamed(columns.kernel[tile][1] + col + i * kChunk, exists);
      }
      if constexpr (kHasTokens) tokens[i] = LoadTokens(columns, 0, col, i * kChunk);
    }
  }

  __device__ __forceinline__ void Multiply(const Columns& columns, int first,
                                           float (&sums)[kOutTiles][kTokenTiles][4]) const {
    const int col = columns.At(first);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      uint4 chunk[kTokenTiles];
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        chunk[tile] = kHasTokens ? tokens[i] : LoadTokens(columns, tile, col, i * kChunk);
      }
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
        for (int out = 0; out < kOutTiles; ++out) {
          MultiplyChunk(weights[i][out], chunk[tile], sums[out][tile]);
        }
      }
    }
  }

  static __device__ __forceinline__ uint4 LoadTokens(const Columns& columns, int tile, int col,
                                                     int offset) {
    const int token = tile * kTokens;
    return LoadReused(columns.x + int64_t{token} * columns.in + col + offset,
                      token < columns.tokens && col + offset < columns.in);
  }

  // A lane's eight consecutive columns are columns 2t, 2t + 1, 2t + 8 and 2t + 9 of two products
  // instead of those of memory: the sum is the same for any order that both operands share.
  static __device__ __forceinline__ void MultiplyChunk(const uint4 (&a)[2], const uint4& b,
                                                       float (&sums)[4]) {
    MmaM16N8K16(sums, {a[0].x, a[1].x, a[0].y, a[1].y}, {b.x, b.y}, std::type_identity<T>{});
    MmaM16N8K16(sums, {a[0].z, a[1].z, a[0].w, a[1].w}, {b.z, b.w}, std::type_identity<T>{});
  }
};

// Adds the warps' sums of some tiles of tokens and finishes their outputs. All threads call it.
template <int kWarps, int kTiles, typename T, typename Y>
__device__ void FinishTiles(const LinearArgs<T, Y>& args,
                            const float (&partial)[kWarps][kTiles * kTileFloats],
                            int64_t first_token, int64_t first_out) {
  constexpr int kTilePairs = kTokens * kOuts / 2;
  for (int i = threadIdx.x; i < kTiles * kTilePairs; i += kWarps * kWarpSize) {
    const int pair = i % (kOuts / 2), token = i / (kOuts / 2);  // counted through all tiles
    float even = 0, odd = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* sums = partial[warp] + token * kTileStride + 2 * pair;
      even += sums[0];
      odd += sums[1];
    }
    const int64_t row = first_token + token, out = first_out + 2 * pair;
    if (row < args.rows && out < args.out) StorePair(args, row, out, even, odd);
  }
}

template <typename T, typename Y, int kTokenTiles, int kOutTiles, int kWarps>
__global__ void __launch_bounds__(kWarps* kWarpSize, kWarps == 8 && kOutTiles == 1 ? 2 : 1)
    LinearDecodeKernel(LinearArgs<T, Y> args) {
  using Stage = LinearStage<T, kTokenTiles, kOutTiles, kWarps>;
  constexpr int kTilesAtOnce = kTokenTiles < 4 ? kTokenTiles : 4;
  __shared__ float partial[kWarps][kTilesAtOnce * kTileFloats];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t first_out = int64_t{blockIdx.x} * kOutTiles * kOuts;
  const int64_t first_token = int64_t{blockIdx.y} * kTokenTiles * kTokens;
  const LinearColumns<T, kOutTiles, kWarps> columns(
      args.kernel + first_out * args.in, args.x + first_token * args.in, args.in,
      int(min(args.out - first_out, int64_t{kOutTiles * kOuts})),
      int(min(args.rows - first_token, int64_t{kTokenTiles * kTokens})));
  const int groups = (columns.in + kGroup - 1) / kGroup;
  const int chunks = (groups + kWarps - 1) / kWarps * kGroupChunks;

  // Chunks beyond the last are zeros, so two stages take turns without looking.
  float sums[kOutTiles][kTokenTiles][4] = {};
  Stage even, odd;
  even.Load(columns, 0);
#pragma unroll 1
  for (int i = 0; i < chunks; i += 2 * Stage::kChunks) {
    odd.Load(columns, i + Stage::kChunks);
    even.Multiply(columns, i, sums);
    even.Load(columns, i + 2 * Stage::kChunks);
    odd.Multiply(columns, i + Stage::kChunks, sums);
  }

#pragma unroll
  for (int out = 0; out < kOutTiles; ++out) {
#pragma unroll
    for (int first = 0; first < kTokenTiles; first += kTilesAtOnce) {
      if (out + first > 0) __syncthreads();  // the tiles before are still being added
#pragma unroll
      for (int tile = 0; tile < kTilesAtOnce; ++tile) {
        float* mine = partial[warp] + tile * kTileFloats + lane % 4 * 2 * kTileStride + lane / 4;
        const float (&sum)[4] = sums[out][first + tile];
        mine[0] = sum[0];
        mine[kTileStride] = sum[1];
        mine[kOuts / 2] = sum[2];
        mine[kTileStride + kOuts / 2] = sum[3];
      }
      __syncthreads();
      FinishTiles<kWarps, kTilesAtOnce>(args, partial, first_token + first * kTokens,
                                        first_out + out * kOuts);
    }
  }
}

template <int kTokenTiles, int kOutTiles, int kWarps, typename T, typename Y>
static void Launch(Stream stream, const LinearArgs<T, Y>& args) {
  constexpr int kBlockOuts = kOutTiles * kOuts, kBlockTokens = kTokenTiles * kTokens;
  const dim3 grid(CeilDiv(args.out, kBlockOuts), CeilDiv(args.rows, kBlockTokens));
  LaunchKernel(LinearDecodeKernel<T, Y, kTokenTiles, kOutTiles, kWarps>,
               {.grid = grid, .block = dim3(kWarps * kWarpSize)}, stream, args);
}

// More tokens share what is loaded of the kernel; from 32 on two tiles of outputs share the tokens.
template <int kWarps, typename T, typename Y>
static void LaunchForRows(Stream stream, const LinearArgs<T, Y>& args) {
  constexpr int kOutTiles = kWarps == 8 ? 2 : 1;  // more warps have fewer registers each
  if (args.rows <= 8) {
    Launch<1, 1, kWarps>(stream, args);
  } else if (args.rows <= 16) {
    Launch<2, 1, kWarps>(stream, args);
  } else if (args.rows <= 32) {
    Launch<4, kOutTiles, kWarps>(stream, args);
  } else {
    Launch<8, kOutTiles, kWarps>(stream, args);
  }
}

template <typename T, typename Y>
void LinearDecode(Stream stream, const LinearArgs<T, Y>& args) {
  // Kernels with at most as many tiles as a large GPU has multiprocessors need more loads from
  // each.
  constexpr int64_t kFewOuts = 132 * kOuts;
  if constexpr (std::is_same_v<T, float>) {
    LinearDecodeFloat(stream, args);
  } else if (args.out <= kFewOuts) {
    LaunchForRows<16>(stream, args);
  } else {
    LaunchForRows<8>(stream, args);
  }
}

template void LinearDecode(Stream, const LinearArgs<float>&);
template void LinearDecode(Stream, const LinearArgs<bfloat16>&);
template void LinearDecode(Stream, const LinearArgs<float16>&);
template void LinearDecode(Stream, const LinearArgs<bfloat16, float>&);
template void LinearDecode(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
