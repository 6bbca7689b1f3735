// Linear for few rows on Hopper: chooses and launches the kernel.
#include "core/launch.cuh"
#include "core/tensor_map.h"
#include "ops/linear_decode_sm90.h"
#include "ops/linear_decode_sm90_kernel.cuh"

namespace eet {

template <class Shape, typename Y>
static void Launch(Stream stream, const LinearArgs<typename Shape::T, Y>& args) {
  constexpr size_t kSharedBytes = sizeof(LinearDecodeShared<Shape>);
  static_assert(Shape::kBlocks * (kSharedBytes + 1024) <= 228 * 1024);
  const auto make = [&](CUtensorMap* map, const void* matrix, int64_t rows, int box_rows) {
    return MakeBoxes(map, matrix,
                     {.sizes = {args.in, rows, 1, 1},
                      .strides = {args.in, rows * args.in, rows * args.in},
                      .box = {Shape::kCols, box_rows, 1, 1}});
  };
  LinearDecodeMaps maps;
  if (!make(&maps.tokens, args.x, args.rows, Shape::kTokens)) return;
  if (!make(&maps.weights, args.kernel, args.out, Shape::kOuts)) return;
  const auto kernel = LinearDecodeSm90Kernel<Shape, Y>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const int64_t tiles = (args.out + Shape::kOuts - 1) / Shape::kOuts;
  const dim3 grid(unsigned(tiles * Shape::kSplits),
                  unsigned((args.rows + Shape::kTokens - 1) / Shape::kTokens));
  LaunchEarly(kernel,
              {.grid = grid,
               .block = dim3(Shape::kThreads),
               .shared_bytes = kSharedBytes,
               .cluster_blocks = Shape::kSplits},
              stream, args, maps);
}

// How many blocks divide the columns of a tile of outputs: so many that nine tenths of the
// multiprocessors have a block, as far as a cluster and the columns allow.
static int Splits(int64_t out, int64_t in) {
  constexpr int kMost = 8, kOuts = 128, kCols = 64;
  const int64_t tiles = (out + kOuts - 1) / kOuts, enough = Multiprocessors() * 9 / 10;
  int splits = 1;
  while (splits < kMost && tiles * splits < enough && 2 * splits * kCols <= in) splits *= 2;
  return splits;
}

template <int kTokens, typename T, typename Y>
static void LaunchSplit(Stream stream, const LinearArgs<T, Y>& args) {
  switch (Splits(args.out, args.in)) {
    case 1:
      return Launch<LinearDecodeShape<T, kTokens, 1>>(stream, args);
    case 2:
      return Launch<LinearDecodeShape<T, kTokens, 2>>(stream, args);
    case 4:
      return Launch<LinearDecodeShape<T, kTokens, 4>>(stream, args);
    default:
      return Launch<LinearDecodeShape<T, kTokens, 8>>(stream, args);
  }
}

template <typename T, typename Y>
void LinearDecodeSm90(Stream stream, const LinearArgs<T, Y>& args) {
  if (args.rows <= 8) {
    LaunchSplit<8>(stream, args);
  } else if (args.rows <= 16) {
    LaunchSplit<16>(stream, args);
  } else if (args.rows <= 32) {
    LaunchSplit<32>(stream, args);
  } else if (args.rows <= 64) {
    LaunchSplit<64>(stream, args);
  } else {
    LaunchSplit<128>(stream, args);
  }
}

template void LinearDecodeSm90(Stream, const LinearArgs<bfloat16>&);
template void LinearDecodeSm90(Stream, const LinearArgs<float16>&);
template void LinearDecodeSm90(Stream, const LinearArgs<bfloat16, float>&);
template void LinearDecodeSm90(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
