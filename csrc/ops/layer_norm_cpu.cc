// Layer norm on the host: rows in parallel, three passes over each.
#include <cmath>

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/layer_norm.h"

namespace eet {

// The mean of term(x[i]), where `term` takes one float or a vector of them.
template <typename T, typename Term>
static float Mean(const T* x, int64_t size, const Term& term) {
  Floats sum{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sum += term(Load(x + i));
  float total = ReduceSum(sum);
  for (; i < size; ++i) total += term(float(x[i]));
  return total / float(size);
}

template <typename T>
static void NormalizeRow(const LayerNormArgs<T>& args, int64_t row) {
  const T* x = args.x + row * args.cols;
  T* y = args.y + row * args.cols;
  const float mean = Mean(x, args.cols, [](auto value) { return value; });
  const float variance =
      Mean(x, args.cols, [mean](auto value) { return (value - mean) * (value - mean); });
  const float inv_std = 1.0f / std::sqrt(variance + args.eps);
  ForEachVector(args.cols, [&](int64_t col, auto count) {
    const Floats value = Load(x + col, count), scale = Load(args.scale + col, count);
    const Floats bias = args.bias ? Load(args.bias + col, count) : Floats{};
    Store(y + col, LayerNormElement(value, scale, bias, mean, inv_std), count);
  });
}

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args) {
  const int64_t grain = 1 + (1 << 14) / (args.cols + 1);
  ParallelRanges(stream, args.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) NormalizeRow(args, row);
  });
}

template void LayerNorm(Stream, const LayerNormArgs<float>&);
template void LayerNorm(Stream, const LayerNormArgs<bfloat16>&);
template void LayerNorm(Stream, const LayerNormArgs<float16>&);

}  // namespace eet
