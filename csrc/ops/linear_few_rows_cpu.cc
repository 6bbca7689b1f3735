// Linear for few rows on the host: kernel rows straight from memory, four at a time per thread, or
// one after the other for a single row.
#include <algorithm>
#include <vector>

#include "core/dot_tile.h"
#include "core/parallel.h"
#include "core/round.h"
#include "ops/linear_cpu.h"
#include "ops/linear_finish_cpu.h"

namespace eet {

constexpr int kBlockOuts = 64;  // outputs that are finished together

// Four rows of the kernel are one piece of memory, but are read side by side, which the processor's
// prefetcher takes for four streams of its own: from rows of 2 KB that costs half the bandwidth. So
// the piece is asked for in its order, this far ahead. For a single row, whose stream is in order,
// it makes up for slow products: pairs of bfloat16 on an Intel Xeon came at 22 GB/s instead of 29.
constexpr int64_t kAheadBytes = 12 << 10;

template <typename T, typename Y>
static void MultiplyBlock(const LinearArgs<T, Y>& args, const Factor<T>* x, int64_t stride,
                          int64_t col) {
  float products[kFewRows][kBlockOuts];
  const int64_t outs = std::min<int64_t>(kBlockOuts, args.out - col);
  for (int64_t i = 0; i < outs; i += kTileOuts) {
    const auto kernel = FourRows<T>::Of(args.kernel, args.in, col + i, args.out);
    float* y = &products[0][i];
    if (args.rows == 1) {
      DotOneRow(kernel, args.in, x, y, kAheadBytes);
    } else {
      DotAllRows(kernel, args.in, args.rows, x, stride, y, kBlockOuts, kAheadBytes);
    }
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
  const int64_t blocks = CeilDiv(args.out, kBlockOuts);
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
