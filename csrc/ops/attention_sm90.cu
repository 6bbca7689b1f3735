// Attention of many queries on Hopper: a persistent kernel, one block per multiprocessor.
//
// The products take the tensor cores 16 cycles for each key of a tile of 128 queries of head size
// 128, the exponentials half of that, and neither can wait for the other. So the roles are divided:
//
//   * Two or three warpgroups multiply (attention_sm90_multiply.cuh), 64 queries each, with their
//     sums in registers. Within a warpgroup the products of this tile's keys and of the last
//     tile's values are under way while weights are computed; and the warpgroups take turns in
//     starting products, so that one has the tensor cores while the other computes weights. Without
//     turns the kernel takes 5% longer.
//   * One warpgroup serves: its planner cuts tokens into units (attention_sm90_plan.cuh), its
//     loader issues TMA loads of queries, keys and values into rings of two to four tiles, its
//     cleaner zeroes the values that no query sees (attention_sm90_load.cuh). It gives most of
//     its registers to those that multiply.
//
// Masks cost as many instructions as the rest of a step, so there are two kinds of steps: tiles
// that all queries of a unit see carry no mask.
//
// Units are dealt longest first, the heads of one stretch of tokens behind each other: heads of a
// group read the same keys at the same time, from L2. Tiles are processed from the last, which the
// diagonal cuts, to the first.
//
// A tile's size is one for each head size, whatever the length: a row's bits must not depend on
// chunks and neighbours. In TFLOP/s on an H200, causal, 32 heads over 8, at 2048, 8192, 32768 and
// ragged over pages of 64:
//
//   head_dim 128, 128 x 128    490  583  571  479
//                 128 x 160    460  594  600  460
//                 128 x 176    446  578  612  407
//                 192 x 80     377  518  531  389
#include <algorithm>
#include <numeric>

#include "core/launch.cuh"
#include "core/tensor_map.h"
#include "ops/attention_sm90.h"
#include "ops/attention_sm90_load.cuh"
#include "ops/attention_sm90_multiply.cuh"
#include "ops/attention_sm90_plan.cuh"

namespace eet {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    AttentionSm90Kernel(const __grid_constant__ AttentionArgs<typename Shape::T> args,
                        const __grid_constant__ AttentionMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<AttentionShared<Shape>*>(memory);
  if (threadIdx.x == 0) InitBarriers(shared);
  if (!args.tokens_are_ready) WaitForDependencies();
  OrderStretches<Shape>(args, reinterpret_cast<int*>(shared.keys), shared.order);
  FenceAsyncProxy();  // tiles take the place of the order's scratch memory
  __syncthreads();
  const int group = Uniform(threadIdx.x / kGroupThreads);
  if (group < Shape::kGroups) {
    TakeRegisters<Shape::kManyRegisters>();
    WaitForDependencies();  // which may still read what this one overwrites
    LaunchDependents();
    AttentionMultiplier<Shape>(args, shared, group).Run();
  } else {
    GiveRegisters<Shape::kFewRegisters>();
    const int warp = Uniform(threadIdx.x % kGroupThreads / kWarpSize);
    if (warp == 0) {
      WaitForDependencies();
      Loader<Shape>(args, maps, shared).Run();
    }
    if (warp == 1) Planner<Shape>(args, shared).Run();
    if (warp == 2) Cleaner<Shape>(shared).Run();
  }
#endif
}

namespace {

template <class Shape>
bool MakeKeyMap(const AttentionArgs<typename Shape::T>& args, int box_keys, const void* keys,
                CUtensorMap* map) {
  const int64_t dim = args.head_dim, heads = args.kv_heads, page = args.page_size;
  if (args.page_table) {
    return MakeBoxMap(map, keys,
                      {.sizes = {dim, page, heads, args.pages},
                       .strides = {dim, page * dim, heads * page * dim},
                       .box = {Shape::kChunk, box_keys, 1, 1}});
  }
  return MakeBoxMap(map, keys,
                    {.sizes = {dim, heads, args.key_len, args.batch},
                     .strides = {dim, heads * dim, args.key_len * heads * dim},
                     .box = {Shape::kChunk, 1, box_keys, 1}});
}

template <class Shape>
bool MakeMaps(const AttentionArgs<typename Shape::T>& args, AttentionMaps* maps) {
  const int64_t dim = args.head_dim, heads = args.heads;
  constexpr int kKeys = Shape::kKeys;
  maps->piece = args.page_table ? int(std::gcd(args.page_size, int64_t{kKeys})) : kKeys;
  maps->pieces = kKeys / maps->piece;
  if (!MakeKeyMap<Shape>(args, maps->piece, args.k, &maps->k)) return false;
  if (!MakeKeyMap<Shape>(args, maps->piece, args.v, &maps->v)) return false;
  return MakeBoxMap(&maps->q, args.q,
                    {.sizes = {dim, heads, args.tokens, 1},
                     .strides = {dim, heads * dim, args.tokens * heads * dim},
                     .box = {Shape::kChunk, 1, kGroupRows, 1}});
}

template <class Shape>
void Launch(Stream stream, const AttentionArgs<typename Shape::T>& args) {
  constexpr size_t kSharedBytes = sizeof(AttentionShared<Shape>);
  static_assert(kSharedBytes <= 227 * 1024);
  AttentionMaps maps;
  if (!MakeMaps<Shape>(args, &maps)) return;
  const auto kernel = AttentionSm90Kernel<Shape>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const int items = Stretches(args, Shape::kQueries).Items(args);
  const int blocks = std::min(items, Multiprocessors());
  const LaunchShape shape{
      .grid = dim3(blocks), .block = dim3(Shape::kThreads), .shared_bytes = kSharedBytes};
  LaunchWithPdl(kernel, shape, stream, args, maps);
}

// Whether the blocks of the grid get so few items that smaller ones share the work more evenly.
template <class Shape>
bool AreFew(const AttentionArgs<typename Shape::T>& args) {
  return Stretches(args, Shape::kQueries).Items(args) < 3 * Multiprocessors();
}

}  // namespace

template <typename T>
void AttentionSm90(Stream stream, const AttentionArgs<T>& args) {
  // Weights are computed from maxima of products, which have to be maxima of scores.
  const bool biased = args.soft_cap != 0.0f || args.alibi_slopes || !(args.scale > 0.0f);
  const auto launch = [&]<class Plain, class Biased>(Plain, Biased) {
    return biased ? Launch<Biased>(stream, args) : Launch<Plain>(stream, args);
  };
  switch (args.head_dim) {
    case 64: {
      using Wide = AttentionShape<T, 64, 3, 128, 4, 64>;
      using Biased = AttentionShape<T, 64, 2, 128, 4, 64, true>;
      if (AreFew<Wide>(args)) return launch(AttentionShape<T, 64, 2, 128, 4, 64>{}, Biased{});
      return launch(Wide{}, Biased{});
    }
    case 80:
      return launch(AttentionShape<T, 80, 2, 128, 2, 16>{},
                    AttentionShape<T, 80, 2, 128, 2, 16, true>{});
    case 96:
      return launch(AttentionShape<T, 96, 2, 128, 2, 32>{},
                    AttentionShape<T, 96, 2, 128, 2, 32, true>{});
    case 128:
      return launch(AttentionShape<T, 128, 2, 160, 2, 64>{},
                    AttentionShape<T, 128, 2, 128, 2, 64, true>{});
    case 256:
      return launch(AttentionShape<T, 256, 2, 64, 2, 64>{},
                    AttentionShape<T, 256, 2, 64, 2, 64, true>{});
  }
}

template void AttentionSm90(Stream, const AttentionArgs<bfloat16>&);
template void AttentionSm90(Stream, const AttentionArgs<float16>&);

}  // namespace eet
