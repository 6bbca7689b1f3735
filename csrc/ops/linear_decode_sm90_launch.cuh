// Linear for few rows on Hopper: chooses and launches the kernel, for any kind of outputs.
#pragma once

#include "core/launch.cuh"
#include "core/round.h"
#include "core/tensor_map.h"
#include "ops/linear_decode_sm90_kernel.cuh"

namespace eet {

// Tiles of outputs.
inline int64_t LinearDecodeTiles(int64_t out) {
  constexpr int kOuts = 128;
  return CeilDiv(out, kOuts);
}

template <class Shape, class Output>
void LaunchLinearDecode(Stream stream, const typename Shape::T* x, const typename Shape::T* kernel,
                        const LinearDecodeSizes& sizes, const typename Output::Args& args) {
  constexpr size_t kSharedBytes = sizeof(LinearDecodeShared<Shape>);
  static_assert(Shape::kBlocks * (kSharedBytes + 1024) <= 228 * 1024);
  const auto make = [&](CUtensorMap* map, const void* matrix, int64_t rows, int box_rows) {
    return MakeBoxMap(map, matrix,
                      {.sizes = {sizes.in, rows, 1, 1},
                       .strides = {sizes.in, rows * sizes.in, rows * sizes.in},
                       .box = {Shape::kCols, box_rows, 1, 1}});
  };
  LinearDecodeMaps maps;
  if (!make(&maps.tokens, x, sizes.rows, Shape::kTokens)) return;
  if (!make(&maps.weights, kernel, sizes.out, Shape::kOuts)) return;
  const auto run = LinearDecodeSm90Kernel<Shape, Output>;
  cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const dim3 grid(unsigned(LinearDecodeTiles(sizes.out) * Shape::kSplits),
                  unsigned(CeilDiv(sizes.rows, Shape::kTokens)));
  LaunchWithPdl(run,
                {.grid = grid,
                 .block = dim3(Shape::kThreads),
                 .shared_bytes = kSharedBytes,
                 .cluster_blocks = Shape::kSplits},
                stream, args, maps, sizes);
}

// How many blocks divide the columns of a tile of outputs: so many that nine tenths of the
// multiprocessors have a block, as far as a cluster and the columns allow.
inline int LinearDecodeSplits(int64_t out, int64_t in) {
  constexpr int kMost = 8, kCols = 64;
  const int64_t tiles = LinearDecodeTiles(out), enough = Multiprocessors() * 9 / 10;
  int splits = 1;
  while (splits < kMost && tiles * splits < enough && 2 * splits * kCols <= in) splits *= 2;
  return splits;
}

template <class Output, int kTokens, typename T>
void LaunchLinearDecodeOf(Stream stream, const T* x, const T* kernel,
                          const LinearDecodeSizes& sizes, const typename Output::Args& args) {
  const auto launch = [&]<int kSplits>(std::integral_constant<int, kSplits>) {
    LaunchLinearDecode<LinearDecodeShape<T, kTokens, kSplits>, Output>(stream, x, kernel, sizes,
                                                                       args);
  };
  switch (LinearDecodeSplits(sizes.out, sizes.in)) {
    case 1:
      return launch(std::integral_constant<int, 1>{});
    case 2:
      return launch(std::integral_constant<int, 2>{});
    case 4:
      return launch(std::integral_constant<int, 4>{});
    default:
      return launch(std::integral_constant<int, 8>{});
  }
}

// Output(args) is what becomes of the sums (linear_decode_sm90_outputs.cuh).
template <class Output, typename T>
void LaunchLinearDecodeSm90(Stream stream, const T* x, const T* kernel,
                            const LinearDecodeSizes& sizes, const typename Output::Args& args) {
  const auto launch = sizes.rows <= 8    ? LaunchLinearDecodeOf<Output, 8, T>
                      : sizes.rows <= 16 ? LaunchLinearDecodeOf<Output, 16, T>
                      : sizes.rows <= 32 ? LaunchLinearDecodeOf<Output, 32, T>
                      : sizes.rows <= 64 ? LaunchLinearDecodeOf<Output, 64, T>
                                         : LaunchLinearDecodeOf<Output, 128, T>;
  launch(stream, x, kernel, sizes, args);
}

}  // namespace eet
