// Layer norm on the GPU: the mean first, then the variance around it.
#include "core/row.cuh"
#include "ops/layer_norm.h"

namespace eet {

template <typename T, class Row>
__global__ void __launch_bounds__(kRowThreads) LayerNormKernel(LayerNormArgs<T> args) {
  WaitForKernelsBefore();
  LetNextKernelStart();
  const int64_t offset = Row::Team::Row() * args.cols;
  Row row(args.x + offset, args.cols);
  const float mean = row.Sum([](float x) { return x; }) / float(args.cols);
  const float variance =
      row.Sum([=](float x) { return (x - mean) * (x - mean); }) / float(args.cols);
  const float inv_std = rsqrtf(variance + args.eps);
  row.Write(args.y + offset, args.scale, args.bias, [&](float x, float scale, float bias) {
    return LayerNormElement(x, scale, bias, mean, inv_std);
  });
}

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  // An absent bias, a null pointer, is aligned.
  const bool aligned = args.cols % Vector<T>::kSize == 0 && IsAligned16(args.x) &&
                       IsAligned16(args.scale) && IsAligned16(args.bias) && IsAligned16(args.y);
  DispatchRow<T>(args.rows, args.cols, aligned, [&]<class Row>(const LaunchShape& shape) {
    LaunchEarly(LayerNormKernel<T, Row>, shape, stream, args);
  });
}

template void LayerNorm(Stream, const LayerNormArgs<float>&);
template void LayerNorm(Stream, const LayerNormArgs<bfloat16>&);
template void LayerNorm(Stream, const LayerNormArgs<float16>&);

}  // namespace eet
