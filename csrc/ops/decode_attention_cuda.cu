// Decode attention on the GPU: a kernel over the splits of all rows, and one that merges them.
#include <type_traits>

#include "ops/decode_attention_fma.cuh"
#include "ops/decode_attention_mma.cuh"

namespace eet {

constexpr int kMergeThreads = 128;
static_assert(kMergeThreads >= kMaxSplits);

constexpr int kMergeAtOnce = 8;  // splits whose sums are loaded together

// One block per head of a token.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) MergeSplitsKernel(DecodeAttentionArgs<T> args) {
  __shared__ float factors[kMaxSplits];
  LetNextKernelStart();
  WaitForKernelsBefore();
  const int thread = threadIdx.x;
  const int64_t token = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
  const int count = SplitsOf(args, token).count;
  const Partial partials = PartialOf(args, token, head, 0);

  SoftmaxState split, total;
  if (thread < count) split = partials.state[thread];
  total.max = BlockReduce<Max>(split.max);
  const float factor = total.Weight(split.max);
  total.sum = BlockReduce<Sum>(split.sum * factor);
  if (thread < count) factors[thread] = factor * total.Normalizer();
  __syncthreads();

  T* out = args.out + (token * args.heads + head) * args.head_dim;
  for (int64_t col = thread; col < args.head_dim; col += kMergeThreads) {
    float sum = 0.0f;
    for (int first = 0; first < count; first += kMergeAtOnce) {
      float sums[kMergeAtOnce];
#pragma unroll
      for (int i = 0; i < kMergeAtOnce; ++i) {
        sums[i] = first + i < count ? partials.sums[(first + i) * args.head_dim + col] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kMergeAtOnce; ++i) {
        if (first + i < count) sum += factors[first + i] * sums[i];
      }
    }
    out[col] = T(sum);
  }
}

// kDim: head_dim rounded up to a size that there is a kernel for.
template <typename T, int kDim>
static void LaunchSplits(Stream stream, const DecodeAttentionArgs<T>& args) {
  const dim3 grid = SplitGrid(args);
  if constexpr (std::is_same_v<T, float>) {
    LaunchEarly(DecodeFmaKernel<kDim>, {.grid = grid, .block = dim3(kDecodeFmaWarps * kWarpSize)},
                stream, args);
  } else {
    using Shape = StreamShape<kDim>;
    auto kernel = DecodeMmaKernel<T, kDim>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
    LaunchEarly(kernel,
                {.grid = grid,
                 .block = dim3(Shape::kWarps * kWarpSize),
                 .shared_bytes = Shape::kSharedBytes},
                stream, args);
  }
}

template <typename T>
void DecodeAttention(Stream stream, const DecodeAttentionArgs<T>& args) {
  if (args.tokens == 0 || args.heads == 0) return;
  if (args.head_dim <= 64) {
    LaunchSplits<T, 64>(stream, args);
  } else if (args.head_dim <= 96) {
    LaunchSplits<T, 96>(stream, args);
  } else if (args.head_dim <= 128) {
    LaunchSplits<T, 128>(stream, args);
  } else {
    LaunchSplits<T, 256>(stream, args);
  }
  LaunchEarly(MergeSplitsKernel<T>,
              {.grid = dim3(args.tokens * args.heads), .block = dim3(kMergeThreads)}, stream, args);
}

template void DecodeAttention(Stream, const DecodeAttentionArgs<float>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<bfloat16>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<float16>&);

}  // namespace eet
