// What the streaming kernels of linear share.
#pragma once

#include <cstdint>

#include "core/mma.cuh"
#include "core/reduce.cuh"
#include "ops/linear_cuda.h"

namespace eet {

constexpr int kOuts = 16;        // of one product of tensor cores
constexpr int kTokens = 8;       // of one product
constexpr int kChunk = 32;       // columns of one 16-byte load per lane: two products
constexpr int kTileStride = 20;  // floats per token of a tile of sums: no bank conflicts, and even
constexpr int kTileFloats = kTokens * kTileStride;

// Sixteen bytes of weights, read once and not kept in the first cache; zeros where not `valid`.
// Volatile, so that loads stay in front of the products that they are ahead of.
__device__ __forceinline__ uint4 LoadStreamed(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

// The same of activations, which other blocks of the multiprocessor read too.
__device__ __forceinline__ uint4 LoadReused(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

// A lane's eight consecutive columns are columns 2t, 2t + 1, 2t + 8 and 2t + 9 of two products
// instead of those of memory: the sum is the same for any order that both operands share.
template <typename T>
__device__ __forceinline__ void MultiplyChunk(const uint4 (&a)[2], const uint4& b,
                                              float (&sums)[4]) {
  MmaM16N8K16(sums, {a[0].x, a[1].x, a[0].y, a[1].y}, {b.x, b.y}, std::type_identity<T>{});
  MmaM16N8K16(sums, {a[0].z, a[1].z, a[0].w, a[1].w}, {b.z, b.w}, std::type_identity<T>{});
}

// Puts a warp's sums of 16 outputs and 8 tokens into its tile, [token, output].
__device__ __forceinline__ void StoreSums(const float (&sums)[4], float* tile) {
  const int lane = threadIdx.x % kWarpSize;
  float* mine = tile + lane % 4 * 2 * kTileStride + lane / 4;
  mine[0] = sums[0];
  mine[kTileStride] = sums[1];
  mine[kOuts / 2] = sums[2];
  mine[kTileStride + kOuts / 2] = sums[3];
}

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

// Whether this GPU has LinearDecodeBulk.
bool StreamsByBulkCopies();

// The form for Hopper: weights come by bulk copies through a ring of shared memory.
template <typename T, typename Y>
void LinearDecodeBulk(Stream stream, const LinearArgs<T, Y>& args);

// One warp per pair of adjacent outputs, on ordinary cores: float32 has no tensor cores of its
// precision.
template <typename Y>
void LinearDecodeFloat(Stream stream, const LinearArgs<float, Y>& args);

}  // namespace eet
