// Sampling on the GPU: one cluster of blocks per row.
#include "core/launch.cuh"
#include "ops/sample_draw.cuh"

namespace eet {

// Vectors of kWidth logits where rows are aligned, else one.
template <int kWidth>
__global__ void EET_CLUSTER __launch_bounds__(kSampleThreads, kSampleBlocks)
    SampleKernel(SampleArgs args) {
  if (Cluster::Rank() >= Cluster::kSize) return;
  __shared__ SampleShared shared;
  const int64_t index = Cluster::Item();
  const SampleRow row(args, index);
  const Drawn drawn = DrawToken<kWidth>(row, shared);
  if (Cluster::Rank() == 0 && threadIdx.x == 0) {
    args.tokens[index] = drawn.token;
    args.logprobs[index] = drawn.sum.LogProbability(row.logits[drawn.token]);
  }
  Cluster::Await();
}

void Sample(Stream stream, const SampleArgs& args) {
  if (args.rows == 0) return;
  auto kernel = InVectors(args) ? SampleKernel<4> : SampleKernel<1>;
  const dim3 grid(args.rows * kClusterBlocks), block(kSampleThreads);
  LaunchKernel(kernel, {.grid = grid, .block = block}, stream, args);
}

}  // namespace eet
