// Token embedding on the GPU. One block per token.
#include <algorithm>

#include "core/launch.cuh"
#include "ops/embedding.cuh"

namespace eet {

constexpr int kMaxThreads = 256;

// kWidth elements per access: a vector where rows are aligned, else one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kMaxThreads) EmbeddingKernel(EmbeddingArgs<T> args) {
  LaunchDependents();
  WaitForDependencies();
  const int64_t token = blockIdx.x;
  const int32_t position = args.positions ? args.positions[token] : 0;
  EmbedToken<kWidth>(args, token, args.tokens[token], position, threadIdx.x, blockDim.x);
}

template <typename T>
void Embedding(Stream stream, const EmbeddingArgs<T>& args) {
  if (args.num_tokens == 0 || args.hidden == 0) return;
  constexpr int kVector = Vector<T>::kSize;
  const bool aligned = InVectors(args);
  const int64_t packs = aligned ? args.hidden / kVector : args.hidden;
  const int threads = int(std::min<int64_t>(kMaxThreads, (packs + 31) / 32 * 32));
  auto kernel = aligned ? EmbeddingKernel<T, kVector> : EmbeddingKernel<T, 1>;
  LaunchWithPdl(kernel, {.grid = dim3(args.num_tokens), .block = dim3(threads)}, stream, args);
}

template void Embedding(Stream, const EmbeddingArgs<float>&);
template void Embedding(Stream, const EmbeddingArgs<bfloat16>&);
template void Embedding(Stream, const EmbeddingArgs<float16>&);

}  // namespace eet
