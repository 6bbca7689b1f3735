// Linear for few rows on the host: kernel rows straight from memory, four at a time per thread.
#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "ops/linear_cpu.h"
#include "ops/linear_finish_cpu.h"
#include "ops/linear_tile.h"

namespace eet {

constexpr int kBlockOuts = 64;  // outputs that are finished together

// Four rows of the kernel are one piece of memory, but are read side by side, which the processor's
// prefetcher takes for four streams of its own: from rows of 2 KB that costs half the bandwidth. So
// the piece is asked for in its order, this far ahead.
constexpr int64_t kAheadBytes = 12 << 10;

template <typename T>
struct KernelRows {
  const T* rows[kTileOuts];

  // The outputs `col` to col + 3; the last one again in place of those that do not exist.
  KernelRows(const T* kernel, int64_t in, int64_t out, int64_t col) {
    for (int i = 0; i < kTileOuts; ++i) rows[i] = kernel + std::min(col + i, out - 1) * in;
  }

  void Load(int64_t k, Factors<Factor<T>> (&factors)[kTileOuts]) const {
#pragma GCC unroll 4
    for (int i = 0; i < kTileOuts; ++i) factors[i] = LoadFactors(rows[i] + k);
  }
};

// Four outputs of kRows rows of x, which is [rows, stride] with zeros after `in`.
template <int kRows, typename T>
static void MultiplyRows(const KernelRows<T>& kernel, int64_t in, const Factor<T>* x,
                         int64_t stride, float* y) {
  constexpr int kStep = Factors<Factor<T>>::kSize;
  constexpr int kLine = 64, kBytes = kTileOuts * kStep * sizeof(T);
  const char* ahead = reinterpret_cast<const char*>(kernel.rows[0]) + kAheadBytes;
  TileSums<kRows> sums = {};
  Factors<Factor<T>> factors[kTileOuts];
  const int64_t whole = in / kStep * kStep;
  for (int64_t k = 0; k < whole; k += kStep, ahead += kBytes) {
#pragma GCC unroll 4
    for (int line = 0; line < kBytes; line += kLine) __builtin_prefetch(ahead + line);
    kernel.Load(k, factors);
    AddProducts<kRows>(x + k, stride, factors, sums);
  }
  if (whole < in) {
    for (int i = 0; i < kTileOuts; ++i) {
      Factor<T> rest[kStep] = {};
      CopyFactors(kernel.rows[i] + whole, in - whole, kStep, rest);
      factors[i] = LoadFactors(rest);
    }
    AddProducts<kRows>(x + whole, stride, factors, sums);
  }
  StoreSums<kRows>(sums, y, kBlockOuts);
}

// Four outputs of `rows` rows of x; as many rows at a time as there are registers for.
template <int kRows, typename T>
static void MultiplyAllRows(const KernelRows<T>& kernel, int64_t in, int64_t rows,
                            const Factor<T>* x, int64_t stride, float* y) {
  while (rows >= kRows) {
    MultiplyRows<kRows>(kernel, in, x, stride, y);
    rows -= kRows;
    x += kRows * stride;
    y += kRows * kBlockOuts;
  }
  if constexpr (kRows > 1) {
    if (rows > 0) MultiplyAllRows<kRows - 1>(kernel, in, rows, x, stride, y);
  }
}

template <typename T, typename Y>
static void MultiplyBlock(const LinearArgs<T, Y>& args, const Factor<T>* x, int64_t stride,
                          int64_t col) {
  float products[kFewRows][kBlockOuts];
  const int64_t outs = std::min<int64_t>(kBlockOuts, args.out - col);
  for (int64_t i = 0; i < outs; i += kTileOuts) {
    const KernelRows<T> kernel(args.kernel, args.in, args.out, col + i);
    MultiplyAllRows<kTileRows>(kernel, args.in, args.rows, x, stride, &products[0][i]);
  }
  for (int64_t row = 0; row < args.rows; ++row) Finish(args, row, col, outs, products[row]);
}

template <typename T, typename Y>
void LinearFewRows(const Stream& stream, const LinearArgs<T, Y>& args) {
  constexpr int kStep = Factors<Factor<T>>::kSize;
  const int64_t stride = RoundUp(args.in, kStep);
  std::vector<Factor<T>> x(args.rows * stride);
  for (int64_t row = 0; row < args.rows; ++row) {
    CopyFactors(args.x + row * args.in, args.in, kStep, x.data() + row * stride);
  }
  const int64_t blocks = (args.out + kBlockOuts - 1) / kBlockOuts;
  const int64_t grain = 1 + (1 << 15) / (kBlockOuts * (args.in + 1));
  ParallelRanges(stream, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      MultiplyBlock(args, x.data(), stride, block * kBlockOuts);
    }
  });
}

template void LinearFewRows(const Stream&, const LinearArgs<float>&);
template void LinearFewRows(const Stream&, const LinearArgs<bfloat16>&);
template void LinearFewRows(const Stream&, const LinearArgs<float16>&);
template void LinearFewRows(const Stream&, const LinearArgs<bfloat16, float>&);
template void LinearFewRows(const Stream&, const LinearArgs<float16, float>&);

}  // namespace eet
