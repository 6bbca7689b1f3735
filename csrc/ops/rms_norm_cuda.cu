// RMS norm on the GPU. One block per row.
#include <algorithm>

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"
#include "ops/rms_norm.h"

namespace eet {

constexpr int kMaxThreads = 512;

// kWidth elements per access: a vector where rows are aligned, else one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) RmsNormKernel(RmsNormArgs<T> args) {
  struct alignas(kWidth * sizeof(T)) Pack {
    T values[kWidth];
  };
  const int64_t packs = args.cols / kWidth;
  const Pack* x = reinterpret_cast<const Pack*>(args.x + blockIdx.x * args.cols);
  const Pack* scale = reinterpret_cast<const Pack*>(args.scale);
  Pack* y = reinterpret_cast<Pack*>(args.y + blockIdx.x * args.cols);

  WaitForKernelsBefore();
  LetNextKernelStart();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack pack = x[i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += float(pack.values[j]) * float(pack.values[j]);
  }
  const float inv_rms = rsqrtf(BlockReduce<Sum>(sum) / float(args.cols) + args.eps);
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack pack = x[i], factor = scale[i];
    Pack out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      out.values[j] = T(RmsNormElement(float(pack.values[j]), float(factor.values[j]), inv_rms));
    }
    y[i] = out;
  }
}

template <typename T>
void RmsNorm(Stream stream, const RmsNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  constexpr int kVector = Vector<T>::kSize;
  const bool aligned = args.cols % kVector == 0 && IsAligned16(args.x) && IsAligned16(args.scale) &&
                       IsAligned16(args.y);
  const int64_t packs = aligned ? args.cols / kVector : args.cols;
  const int threads = int(std::min<int64_t>(kMaxThreads, (packs + 31) / 32 * 32));
  auto kernel = aligned ? RmsNormKernel<T, kVector> : RmsNormKernel<T, 1>;
  LaunchEarly(kernel, {.grid = dim3(args.rows), .block = dim3(threads)}, stream, args);
}

template void RmsNorm(Stream, const RmsNormArgs<float>&);
template void RmsNorm(Stream, const RmsNormArgs<bfloat16>&);
template void RmsNorm(Stream, const RmsNormArgs<float16>&);

}  // namespace eet
