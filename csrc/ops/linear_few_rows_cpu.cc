// Linear for few rows on the host: kernel rows straight from memory, four at a time per thread.
#include <vector>

#include "core/parallel.h"
#include "ops/linear_cpu.h"
#include "ops/linear_tile.h"

namespace eet {

// Four outputs of kRows rows of x, which is [rows, stride] with zeros after `in`.
template <int kRows, typename T, typename Y>
static void MultiplyRows(const LinearArgs<T, Y>& args, const float* x, int64_t stride, int64_t row,
                         int64_t col) {
  const int64_t whole = args.in / kLanes * kLanes;
  const T* kernel[kTileOuts];
  for (int i = 0; i < kTileOuts; ++i) {
    kernel[i] = args.kernel + std::min(col + i, args.out - 1) * args.in;
  }
  Floats sums[kRows][kTileOuts] = {};
  MultiplyTile<kRows>(x + row * stride, stride, kernel, whole, sums);
  if (whole < args.in) {
    T rest[kTileOuts][kLanes] = {};
    for (int i = 0; i < kTileOuts; ++i) std::copy(kernel[i] + whole, kernel[i] + args.in, rest[i]);
    MultiplyTile<kRows>(x + row * stride + whole, stride, {rest[0], rest[1], rest[2], rest[3]},
                        kLanes, sums);
  }
  for (int i = 0; i < kRows; ++i) StoreTile(args, row + i, col, sums[i]);
}

template <typename T, typename Y>
static void MultiplyAllRows(const LinearArgs<T, Y>& args, const float* x, int64_t stride,
                            int64_t col) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) {
    MultiplyRows<kTileRows>(args, x, stride, row, col);
  }
  if (row + 2 <= args.rows) {
    MultiplyRows<2>(args, x, stride, row, col);
    row += 2;
  }
  if (row < args.rows) MultiplyRows<1>(args, x, stride, row, col);
}

template <typename T, typename Y>
void LinearFewRows(const Stream& stream, const LinearArgs<T, Y>& args) {
  const int64_t stride = RoundUp(args.in, kLanes);
  std::vector<float> x(args.rows * stride);
  for (int64_t row = 0; row < args.rows; ++row) {
    Unpack(args.x + row * args.in, args.in, x.data() + row * stride);
  }
  const int64_t tiles = (args.out + kTileOuts - 1) / kTileOuts;
  const int64_t grain = 1 + (1 << 15) / (kTileOuts * (args.in + 1));
  ParallelRanges(stream, tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      MultiplyAllRows(args, x.data(), stride, tile * kTileOuts);
    }
  });
}

template void LinearFewRows(const Stream&, const LinearArgs<float>&);
template void LinearFewRows(const Stream&, const LinearArgs<bfloat16>&);
template void LinearFewRows(const Stream&, const LinearArgs<float16>&);
template void LinearFewRows(const Stream&, const LinearArgs<bfloat16, float>&);
template void LinearFewRows(const Stream&, const LinearArgs<float16, float>&);

}  // namespace eet
