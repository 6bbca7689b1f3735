// Token embedding on the GPU. One block per token.
#include <algorithm>

#include "core/launch.cuh"
#include "core/vector.cuh"
#include "ops/embedding.h"

namespace eet {

constexpr int kMaxThreads = 256;

// kWidth elements per access: a vector where rows are aligned, else one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) EmbeddingKernel(EmbeddingArgs<T> args) {
  struct alignas(kWidth * sizeof(T)) Pack {
    T values[kWidth];
  };
  LetNextKernelStart();
  WaitForKernelsBefore();
  const int64_t token = blockIdx.x;
  const Pack* entry = reinterpret_cast<const Pack*>(
      NearestRow(args.table, args.tokens[token], args.vocab, args.hidden));
  const Pack* position = reinterpret_cast<const Pack*>(PositionRow(args, token));
  Pack* y = reinterpret_cast<Pack*>(args.y + token * args.hidden);
  for (int64_t i = threadIdx.x; i < args.hidden / kWidth; i += blockDim.x) {
    const Pack pack = entry[i], offset = position ? position[i] : Pack{};
    Pack out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float scaled = float(pack.values[j]) * args.scale;
      out.values[j] = T(position ? scaled + float(offset.values[j]) : scaled);
    }
    y[i] = out;
  }
}

template <typename T>
void Embedding(Stream stream, const EmbeddingArgs<T>& args) {
  if (args.num_tokens == 0 || args.hidden == 0) return;
  constexpr int kVector = Vector<T>::kSize;
  // An absent position table, a null pointer, is aligned.
  const bool aligned = args.hidden % kVector == 0 && IsAligned16(args.table) &&
                       IsAligned16(args.position_table) && IsAligned16(args.y);
  const int64_t packs = aligned ? args.hidden / kVector : args.hidden;
  const int threads = int(std::min<int64_t>(kMaxThreads, (packs + 31) / 32 * 32));
  auto kernel = aligned ? EmbeddingKernel<T, kVector> : EmbeddingKernel<T, 1>;
  LaunchEarly(kernel, {.grid = dim3(args.num_tokens), .block = dim3(threads)}, stream, args);
}

template void Embedding(Stream, const EmbeddingArgs<float>&);
template void Embedding(Stream, const EmbeddingArgs<bfloat16>&);
template void Embedding(Stream, const EmbeddingArgs<float16>&);

}  // namespace eet
