// Linear for many rows on Hopper: a persistent kernel, one block per multiprocessor.
//
//   * Two warpgroups multiply tiles of 128 rows and 256 outputs (linear_prefill_sm90_multiply.cuh),
//     their sums in registers, from where an epilogue finishes them
//     (linear_prefill_sm90_epilogue.cuh): a product needs no memory of its own. The ring lets one
//     warpgroup be ahead of the other by little, so finishing must be short: TMA stores the results
//     (linear_prefill_sm90_store.cuh). Taking turns in finishing cost 1 to 5 %.
//   * One thread issues TMA loads into a ring of four to twelve stages
//     (linear_prefill_sm90_load.cuh); it is ahead by as many, so the next tile's come while one is
//     finished. Inside a layer the first weights come while the preceding kernel ends.
//   * Two blocks, a cluster, have the same outputs: each multicasts half of the weights' tile into
//     the shared memory of both, else L2 could not keep up.
//
// Where such tiles are too few for all multiprocessors they are smaller: a prompt of 128 tokens has
// 64 rows in each. An output's sum has the same order in all: a row's bits do not depend on others.
#pragma once

#include <algorithm>

#include "core/launch.cuh"
#include "core/round.h"
#include "core/stream.h"
#include "core/tensor_map.h"
#include "ops/linear_prefill_sm90_load.cuh"
#include "ops/linear_prefill_sm90_multiply.cuh"

namespace eet {

template <class Shape, class Epilogue>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    LinearPrefillSm90Kernel(const __grid_constant__ typename Epilogue::Args args,
                            const __grid_constant__ LinearMaps maps,
                            const __grid_constant__ LinearTiles tiles, bool weights_are_ready) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<LinearShared<Shape>*>(memory);
  if (threadIdx.x == 0) InitBarriers(shared);
  LinearCluster::Sync();
  const int group = Uniform(threadIdx.x / kGroupThreads);
  if (group < Shape::kGroups) {
    if constexpr (Shape::kGroups > 1) TakeRegisters<Shape::kManyRegisters>();
    WaitForDependencies();
    LaunchDependents();
    LinearMultiplier<Shape, Epilogue>(args, tiles, shared, maps.y, group).Run();
  } else {
    if constexpr (Shape::kGroups > 1) GiveRegisters<Shape::kFewRegisters>();
    if (threadIdx.x % kGroupThreads == 0) {
      LinearLoader<Shape>(maps, tiles, shared).Run(weights_are_ready);
    }
  }
  LinearCluster::Sync();  // the other block still arrives at this one's barriers
#endif
}

struct LinearSizes {
  int64_t rows, in, out;
  bool weights_are_ready;  // as LinearArgs has it
};

template <class Shape, class Epilogue>
void LaunchLinearPrefillSm90(Stream stream, const typename Shape::T* x,
                             const typename Shape::T* kernel, const LinearSizes& sizes,
                             const typename Epilogue::Args& args) {
  constexpr size_t kSharedBytes = sizeof(LinearShared<Shape>);
  static_assert(kSharedBytes <= 227 * 1024);
  const auto make = [](CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols,
                       int box_rows, int box_cols) {
    return MakeBoxMap(map, matrix,
                      {.sizes = {cols, rows, 1, 1},
                       .strides = {cols, rows * cols, rows * cols},
                       .box = {box_cols, box_rows, 1, 1}});
  };
  LinearMaps maps = {};
  if (!make(&maps.x, x, sizes.rows, sizes.in, Shape::kRows, Shape::kCols)) return;
  if (!make(&maps.kernel, kernel, sizes.out, sizes.in, Shape::kPartOuts, Shape::kCols)) return;
  if constexpr (requires { Epilogue::Results(args); }) {
    const auto [y, cols] = Epilogue::Results(args);
    if (!make(&maps.y, y, sizes.rows, cols, kGroupRows, Shape::kStoreCols)) return;
  }
  const auto run = LinearPrefillSm90Kernel<Shape, Epilogue>;
  cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const LinearTiles tiles =
      LinearTiles::Of(sizes.rows, sizes.in, sizes.out, std::type_identity<Shape>{});
  const int clusters = std::min(tiles.pairs * tiles.strips, Multiprocessors() / kLinearBlocks);
  const LaunchShape shape{.grid = dim3(clusters * kLinearBlocks),
                          .block = dim3(Shape::kThreads),
                          .shared_bytes = kSharedBytes,
                          .cluster_blocks = kLinearBlocks};
  LaunchWithPdl(run, shape, stream, args, maps, tiles, sizes.weights_are_ready);
}

// The tiles that there are, in the order of their outputs.
template <typename T>
using WideTiles = LinearShape<T, 2, 256, 4>;

template <typename T>
using NarrowTiles = LinearShape<T, 2, 128, 6>;

template <typename T>
using LowTiles = LinearShape<T, 1, 128, 8>;

// What it costs to begin a stage is more than a box of these takes to multiply.
template <typename T>
using SmallTiles = LinearShape<T, 1, 64, 6, 2>;

// Where wide ones leave clusters without a tile: 6144 outputs of 512 rows are one tile for 48 of 66
// clusters, or a smaller one for 64.
template <typename T>
using MiddleTiles = LinearShape<T, 2, 192, 4>;

// How long a product takes whose tiles take `tile_time`: clusters have them one after the other.
template <class Shape>
double LinearTime(const LinearSizes& sizes, double tile_time) {
  const auto tiles = LinearTiles::Of(sizes.rows, sizes.in, sizes.out, std::type_identity<Shape>{});
  const int clusters = Multiprocessors() / kLinearBlocks;
  return tile_time * CeilDiv(tiles.pairs * tiles.strips, clusters);
}

// Calls launch with the shape of the tiles that are ready first, of those whose outputs are a
// multiple of kLeastOuts. A tile's time is as measured on an H200: smaller ones take more than
// their share, for they copy more for what they multiply.
template <typename T, int kLeastOuts, typename F>
void WithLinearShape(const LinearSizes& sizes, const F& launch) {
  const double times[] = {
      LinearTime<WideTiles<T>>(sizes, 1.0), LinearTime<NarrowTiles<T>>(sizes, 0.54),
      LinearTime<LowTiles<T>>(sizes, 0.38), LinearTime<SmallTiles<T>>(sizes, 0.25),
      LinearTime<MiddleTiles<T>>(sizes, 0.8)};
  constexpr int kChoices = kLeastOuts <= 64 ? 5 : kLeastOuts <= 128 ? 3 : 1;
  switch (std::min_element(times, times + kChoices) - times) {
    case 0:
      return launch(WideTiles<T>{});
    case 1:
      if constexpr (kChoices > 1) return launch(NarrowTiles<T>{});
      break;
    case 2:
      if constexpr (kChoices > 2) return launch(LowTiles<T>{});
      break;
    case 3:
      if constexpr (kChoices > 3) return launch(SmallTiles<T>{});
      break;
    case 4:
      if constexpr (kChoices > 4) return launch(MiddleTiles<T>{});
      break;
  }
}

}  // namespace eet
