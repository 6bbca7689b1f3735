// One launch between two decode steps: a cluster of blocks per row draws its token, then its blocks
// share out what follows from it.
#include "core/launch.cuh"
#include "ops/advance.h"
#include "ops/embedding.cuh"
#include "ops/sample_draw.cuh"

namespace eet {

// By one thread. All that it reads comes first, in one wait for memory.
template <typename T>
__device__ void Record(const AdvanceArgs<T>& args, int64_t index, const SampleRow& row,
                       const Drawn& drawn) {
  const int32_t length = int32_t(row.position), token = drawn.token;
  const int32_t place = min(length / int32_t(args.page_size), int32_t(args.max_pages) - 1);
  const int32_t page = args.page_table[index * args.max_pages + place];
  const float logit = row.logits[token];
  const bool active = !args.done[index];
  const bool appends = active && length < args.max_length && page > 0;
  const int32_t generated = args.generated[index] + active;
  bool ends = generated >= *args.max_new_tokens;
  for (int64_t i = 0; i < args.num_eos; ++i) ends |= args.eos[i] == token;
  const int64_t at = min(int64_t{*args.step}, args.steps - 1) * args.sample.rows + index;

  args.sample.tokens[at] = token;
  args.sample.logprobs[at] = drawn.sum.LogProbability(logit);
  args.active[at] = active;
  args.rows[index] = appends ? int32_t(index) : -1;
  args.positions[index] = length;
  args.lengths[index] = length + appends;
  args.generated[index] = generated;
  if (active) args.seen[index * args.sample.vocab + token] = 1;
  if (ends) args.done[index] = true;
}

// By a block.
template <typename T>
__device__ void FillRotaryTable(const AdvanceArgs<T>& args, int64_t row, int32_t position) {
  float* table = args.rotary_table + row * args.pairs * 2;
  for (int64_t i = threadIdx.x; i < args.pairs; i += kSampleThreads) {
    float sine, cosine;
    sincosf(float(position) * args.inverse_frequencies[i], &sine, &cosine);
    table[2 * i] = cosine * args.rotary_scale;
    table[2 * i + 1] = sine * args.rotary_scale;
  }
}

// Vectors of kLogits logits and kElements elements of embeddings.
template <typename T, int kLogits, int kElements>
__global__ void EET_CLUSTER __launch_bounds__(kSampleThreads, kSampleBlocks)
    AdvanceKernel(AdvanceArgs<T> args) {
  if (Cluster::Rank() >= Cluster::kSize) return;
  LaunchDependents();
  WaitForDependencies();
  __shared__ SampleShared shared;
  const int64_t index = Cluster::Item();
  const SampleRow row(args.sample, index);
  const Drawn drawn = DrawToken<kLogits>(row, shared);
  // Nobody reads any more what is updated in place. Each block waits for memory once.
  const int32_t length = int32_t(row.position);
  if (Cluster::Rank() == 0) {
    EmbedToken<kElements>(args.embedding, index, drawn.token, length, threadIdx.x, kSampleThreads);
  }
  if (Cluster::Rank() == Cluster::kSize / 2) FillRotaryTable(args, index, length);
  if (Cluster::Rank() == Cluster::kSize - 1 && threadIdx.x == 0) {
    Record(args, index, row, drawn);
  }
  Cluster::Await();
}

template <typename T>
void Advance(Stream stream, const AdvanceArgs<T>& args) {
  if (args.sample.rows == 0) return;
  const bool in_vectors = InVectors(args.sample) && InVectors(args.embedding);
  auto kernel = in_vectors ? AdvanceKernel<T, 4, Vector<T>::kSize> : AdvanceKernel<T, 1, 1>;
  const dim3 grid(args.sample.rows * kClusterBlocks), block(kSampleThreads);
  LaunchWithPdl(kernel, {.grid = grid, .block = block}, stream, args);
}

template void Advance(Stream, const AdvanceArgs<float>&);
template void Advance(Stream, const AdvanceArgs<bfloat16>&);
template void Advance(Stream, const AdvanceArgs<float16>&);

}  // namespace eet
