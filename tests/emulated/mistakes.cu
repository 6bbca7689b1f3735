// A kernel that is right, and the same with a mistake each, which the emulated GPU has to notice.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tma.cuh"
#include "core/cluster.cuh"
#include "core/instructions.cuh"
#include "core/launch.cuh"
#include "core/launch_problem.h"
#include "core/reduce.cuh"
#include "core/tensor_map.h"
#include "core/types.h"
#include "core/wgmma.cuh"

namespace eet {

enum Mistake {
  kNone,
  kNoWaitForBoxes,
  kNoWaitForProducts,
  kNoWaitForCopies,
  kTooFewArrivals,
  kTooManyArrivals,
  kOtherSwizzle,
  kBoxOutside,
  kWriteOutside,
  kLanesPart,
  kThreadMissing,
  kMistakes
};

constexpr int kSize = 64, kSpan = 2 * kSize, kTileBytes = kSize * kSpan;

struct Shared {
  alignas(1024) char x[kTileBytes];
  char y[kTileBytes];
  alignas(16) float scales[kSize];
  Barrier full;
};

struct Maps {
  CUtensorMap x, y;
};

// out = x y' * scales: one block, a box of each factor, four products.
template <int kMistake>
__global__ void ProductKernel(const __grid_constant__ Maps maps, const float* scales, float* out) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, lane = thread % kWarpSize;
  if (thread == 0) shared.full.Init(kMistake == kTooFewArrivals ? 2 : 1);
  __syncthreads();
  if (thread < kSize / 4) CopyAsync16(shared.scales + 4 * thread, scales + 4 * thread, true);
  CommitCopies();
  if (thread == 0) {
    shared.full.ArriveExpecting(2 * kTileBytes);
    if (kMistake == kTooManyArrivals) shared.full.Arrive(), shared.full.Arrive();
    TmaLoad(SharedAddress(shared.x), maps.x, 0, 0, 0, 0, shared.full);
    const int offset = kMistake == kBoxOutside ? kTileBytes : 0;
    TmaLoad(SharedAddress(shared.y) + offset, maps.y, 0, 0, 0, 0, shared.full);
  }
  if (kMistake != kNoWaitForBoxes) shared.full.Wait(0);
  float sums[kSize / 2];
  WgmmaFence();
  for (int k = 0; k < kSize / 16; ++k) {
    constexpr int kRead = kMistake == kOtherSwizzle ? 64 : kSpan;
    Wgmma<bfloat16, kSize>::FromShared(sums, WgmmaDescriptor<kSpan>(SharedAddress(shared.x) + 32 * k),
                                     WgmmaDescriptor<kRead>(SharedAddress(shared.y) + 32 * k), k > 0);
  }
  WgmmaCommit();
  if (kMistake != kNoWaitForCopies) WaitCopies<0>();
  if (kMistake != kThreadMissing || thread != 5) __syncthreads();
  if (kMistake == kLanesPart && lane < 16) __syncwarp();
  if (kMistake != kNoWaitForProducts) WgmmaWait<0>(sums);
  for (int i = 0; i < kSize / 2; ++i) {
    const int row = thread / kWarpSize * 16 + lane / 4 + i / 2 % 2 * 8;
    const int col = i / 4 * 8 + lane % 4 * 2 + i % 2;
    out[row * kSize + col] = sums[i] * shared.scales[col];
  }
  if (kMistake == kWriteOutside && thread == 0) memory[sizeof(Shared)] = 0;
}

static bool MakeTile(CUtensorMap* map, const bfloat16* tile) {
  return MakeBoxMap(
      map, tile,
      {.sizes = {kSize, kSize, 1, 1}, .strides = {kSize, 1 << 12, 1 << 12}, .box = {64, 64, 1, 1}});
}

template <int kMistake>
static std::string Try() {
  std::vector<bfloat16> x(kSize * kSize), y(kSize * kSize);
  std::vector<float> scales(kSize), out(kSize * kSize);
  for (int i = 0; i < kSize * kSize; ++i) {
    x[i] = bfloat16(float(i * 7 % 13 - 6));
    y[i] = bfloat16(float(i * 5 % 11 - 5));
    scales[i / kSize] = float(i / kSize + 1);
  }
  Maps maps;
  if (!MakeTile(&maps.x, x.data()) || !MakeTile(&maps.y, y.data())) return LaunchProblem();
  const LaunchShape shape{
      .grid = dim3(1), .block = dim3(kGroupThreads), .shared_bytes = sizeof(Shared)};
  LaunchKernel(ProductKernel<kMistake>, shape, nullptr, maps,
               static_cast<const float*>(scales.data()), out.data());
  if (const cudaError_t error = cudaGetLastError()) return cudaGetErrorString(error);
  for (int i = 0; i < kSize * kSize; ++i) {
    float want = 0;
    for (int k = 0; k < kSize; ++k) {
      want += float(x[i / kSize * kSize + k]) * float(y[i % kSize * kSize + k]);
    }
    if (!(out[i] == want * scales[i % kSize])) return "wrong numbers";
  }
  return "";
}

// The first thing that was wrong in some tries, in which threads run in different orders.
template <int kMistake = 0>
static std::string TryOften(int mistake) {
  if constexpr (kMistake == kMistakes) {
    return "no such mistake";
  } else {
    if (mistake != kMistake) return TryOften<kMistake + 1>(mistake);
    std::string problem;
    for (int i = 0; i < 20 && problem.empty(); ++i) problem = Try<kMistake>();
    return problem;
  }
}

}  // namespace eet

// What the emulated GPU says of a mistake; nothing if it has noticed nothing.
extern "C" __attribute__((visibility("default"))) const char* emulated_mistake(int mistake) {
  static std::string problem;
  problem = eet::TryOften(mistake);
  return problem.c_str();
}
