// Layer norm on the GPU. One block per row, three passes over it, of which the caches serve two.
#include <algorithm>

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"
#include "ops/layer_norm.h"

namespace eet {

constexpr int kMaxThreads = 512;

// kWidth elements per access: a vector where rows are aligned, else one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) LayerNormKernel(LayerNormArgs<T> args) {
  struct alignas(kWidth * sizeof(T)) Pack {
    T values[kWidth];
  };
  const int64_t packs = args.cols / kWidth;
  const Pack* x = reinterpret_cast<const Pack*>(args.x + blockIdx.x * args.cols);
  const Pack* scale = reinterpret_cast<const Pack*>(args.scale);
  const Pack* bias = reinterpret_cast<const Pack*>(args.bias);
  Pack* y = reinterpret_cast<Pack*>(args.y + blockIdx.x * args.cols);

  WaitForKernelsBefore();
  LetNextKernelStart();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack pack = x[i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += float(pack.values[j]);
  }
  const float mean = BlockReduce<Sum>(sum) / float(args.cols);

  float square = 0;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack pack = x[i];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float centred = float(pack.values[j]) - mean;
      square += centred * centred;
    }
  }
  const float inv_std = rsqrtf(BlockReduce<Sum>(square) / float(args.cols) + args.eps);

  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack pack = x[i], factor = scale[i], offset = bias ? bias[i] : Pack{};
    Pack out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      out.values[j] = T(LayerNormElement(float(pack.values[j]), float(factor.values[j]),
                                         float(offset.values[j]), mean, inv_std));
    }
    y[i] = out;
  }
}

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  constexpr int kVector = Vector<T>::kSize;
  // An absent bias, a null pointer, is aligned.
  const bool aligned = args.cols % kVector == 0 && IsAligned16(args.x) && IsAligned16(args.scale) &&
                       IsAligned16(args.bias) && IsAligned16(args.y);
  const int64_t packs = aligned ? args.cols / kVector : args.cols;
  const int threads = int(std::min<int64_t>(kMaxThreads, (packs + 31) / 32 * 32));
  auto kernel = aligned ? LayerNormKernel<T, kVector> : LayerNormKernel<T, 1>;
  LaunchEarly(kernel, {.grid = dim3(args.rows), .block = dim3(threads)}, stream, args);
}

template void LayerNorm(Stream, const LayerNormArgs<float>&);
template void LayerNorm(Stream, const LayerNormArgs<bfloat16>&);
template void LayerNorm(Stream, const LayerNormArgs<float16>&);

}  // namespace eet
