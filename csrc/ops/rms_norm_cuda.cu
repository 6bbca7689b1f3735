// RMS norm on the GPU.
#include "core/row.cuh"
#include "ops/rms_norm.h"

namespace eet {

template <typename T, class Row>
__global__ void __launch_bounds__(kRowThreads) RmsNormKernel(RmsNormArgs<T> args) {
  WaitForKernelsBefore();
  LetNextKernelStart();
  const int64_t offset = Row::Team::Row() * args.cols;
  Row row(args.x + offset, args.cols);
  const float square = row.Sum([](float x) { return x * x; }) / float(args.cols);
  const float inv_rms = rsqrtf(square + args.eps);
  row.Write(args.y + offset, args.scale, static_cast<const T*>(nullptr),
            [&](float x, float scale, float) { return RmsNormElement(x, scale, inv_rms); });
}

template <typename T>
void RmsNorm(Stream stream, const RmsNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const bool aligned = args.cols % Vector<T>::kSize == 0 && IsAligned16(args.x) &&
                       IsAligned16(args.scale) && IsAligned16(args.y);
  DispatchRow<T>(args.rows, args.cols, aligned, [&]<class Row>(const LaunchShape& shape) {
    LaunchEarly(RmsNormKernel<T, Row>, shape, stream, args);
  });
}

template void RmsNorm(Stream, const RmsNormArgs<float>&);
template void RmsNorm(Stream, const RmsNormArgs<bfloat16>&);
template void RmsNorm(Stream, const RmsNormArgs<float16>&);

}  // namespace eet
