// Attention on the GPU: launches Hopper's own kernel where there is one for the arguments, else
// that of the element type and the padded head size.
#include <type_traits>

#include "core/launch.cuh"
#include "ops/attention_fma.cuh"
#include "ops/attention_mma.cuh"
#include "ops/attention_sm90.h"

namespace eet {

template <typename T>
static void LaunchTiles(Stream stream, const AttentionArgs<T>& args,
                        void (*kernel)(AttentionArgs<T>), int queries, int threads,
                        int shared_bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  const int64_t blocks = QueryTiles(args, queries) * QueryGroups(args) * args.heads;
  LaunchKernel(kernel,
               {.grid = dim3(blocks), .block = dim3(threads), .shared_bytes = size_t(shared_bytes)},
               stream, args);
}

// kDim: head_dim rounded up to a size that there is a kernel for.
template <typename T, int kDim>
static void LaunchDim(Stream stream, const AttentionArgs<T>& args) {
  if constexpr (std::is_same_v<T, float>) {
    LaunchTiles(stream, args, AttentionFmaKernel<kDim>, kFmaQueries, kFmaThreads,
                sizeof(FmaShared<kDim>));
  } else {
    LaunchTiles(stream, args, AttentionMmaKernel<T, kDim>, kMmaQueries, kMmaThreads,
                kMmaSharedBytes<kDim>);
  }
}

template <typename T>
void Attention(Stream stream, const AttentionArgs<T>& args) {
  if (args.tokens == 0 || args.heads == 0) return;
  if constexpr (sizeof(T) == 2) {
    if (ComputeMajor() == 9 && AttentionSm90Takes(args)) return AttentionSm90(stream, args);
  }
  if (args.head_dim <= 64) return LaunchDim<T, 64>(stream, args);
  if (args.head_dim <= 96) return LaunchDim<T, 96>(stream, args);
  if (args.head_dim <= 128) return LaunchDim<T, 128>(stream, args);
  return LaunchDim<T, 256>(stream, args);
}

template void Attention(Stream, const AttentionArgs<float>&);
template void Attention(Stream, const AttentionArgs<bfloat16>&);
template void Attention(Stream, const AttentionArgs<float16>&);

}  // namespace eet
