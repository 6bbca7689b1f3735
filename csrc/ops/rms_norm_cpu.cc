// RMS norm on the host: rows in parallel, two passes over each.
#include <cmath>

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/rms_norm.h"

namespace eet {

template <typename T>
static void NormalizeRow(const RmsNormArgs<T>& args, int64_t row) {
  const T* x = args.x + row * args.cols;
  T* y = args.y + row * args.cols;
  const float mean_square = Dot(x, x, args.cols) / float(args.cols);
  const float inv_rms = 1.0f / std::sqrt(mean_square + args.eps);
  ForEachVector(args.cols, [&](int64_t col, auto count) {
    const Floats value = Load(x + col, count), scale = Load(args.scale + col, count);
    Store(y + col, RmsNormElement(value, scale, inv_rms), count);
  });
}

template <typename T>
void RmsNorm(Stream stream, const RmsNormArgs<T>& args) {
  const int64_t grain = 1 + (1 << 14) / (args.cols + 1);
  ParallelRanges(stream, args.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) NormalizeRow(args, row);
  });
}

template void RmsNorm(Stream, const RmsNormArgs<float>&);
template void RmsNorm(Stream, const RmsNormArgs<bfloat16>&);
template void RmsNorm(Stream, const RmsNormArgs<float16>&);

}  // namespace eet
