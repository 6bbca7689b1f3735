// The persistent decode step: one launch streams every weight and the whole cache once.
//
// At batch 1 a step is bound by memory: 2.5 GB of weights for a 1B model, 540 us at 4.6 TB/s. A
// kernel per product loses time at each of its ends, when the last blocks still load and the next
// kernel has not begun. Here one block per multiprocessor runs all products of all layers, and
// memory never rests:
//
//   * A producer warp issues TMA loads of 16 KiB tiles, in the order in which they will be
//     multiplied, into a ring in shared memory. Weights do not depend on activations, so while the
//     blocks exchange activations between two products, tiles of the next one arrive. The ring is
//     deep (11 or 12 tiles, 5 us of the stream), but only four tiles are under way at a time on an
//     H200: with two the stream loses 10%, with eight 2%, and the exchange waits longer for L2. An
//     H100's memory is slower, and two are best.
//   * Every block has the same bytes of every product, not only in sum: a phase ends when its last
//     block ends. The number of blocks is chosen for that (Grid), 128 rather than 132 where it
//     divides a model's sizes.
//   * Blocks exchange activations without fences (decode_step_wait.cuh).
//   * Weights stay row-major: TMA's swizzle puts eight rows of a tile into eight groups of banks,
//     as ldmatrix reads them (tensor_map.h). Boxes of rows stream at 4.55 TB/s, as fast
//     as tiles that are contiguous in memory.
//   * Between two exchanges a single warp's instructions count: it issues one in about six cycles,
//     for the code of a layer (100 KB) is more than a multiprocessor's instruction cache holds, and
//     a quarter to a third of its requests miss. So what runs is kept short, and what a step needs
//     of positions, pages, norms and shares is found ahead of time and lies in shared memory. What
//     is kept in registers must fit: a hundred values more on the stack cost 3 to 10% of a step.
//
// A layer's phases, each ended by an exchange:
//
//   qkv       norm of the stream, product, rotation            all blocks
//   partials  cache append, attention over splits              items dealt to warps
//   attended  merge of the splits                              tasks dealt to warps
//   out       product, residual                                all blocks
//   up        norm of the stream, product, activation          all blocks
//   down      product, residual                                all blocks
//
// Within a block eight consumer warps multiply and attend, a producer loads tiles, finishers add
// the consumers' sums and finish outputs, and a lookout watches the phases' counters.
//
// benchmarks/profile_step.py shows what each phase waits for (decode_step_profile.cuh).
#pragma once

#include "ops/decode_step_launch.cuh"
#include "ops/decode_step_roles.cuh"

namespace eet {

template <typename T, int kDim, int kSets, bool kScales>
__global__ void __launch_bounds__(kStepThreads, 1)
    DecodeStepKernel(const __grid_constant__ StepParams<T> params) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) char memory[];
  StepBlock<T> block(params, memory);
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x == 0) InitWords(block);
  if (warp == 1 && LaneId() < kProducts) FindUnits(block, Product(LaneId()));
  __syncthreads();
  // Registers are dealt to warpgroups, 168 to each thread at the launch. The last one gives most
  // of its own to the other two: 72 + 2 * 216 = 3 * 168. With more they would wait for ever.
  if (warp < kConsumerWarps) {
    TakeRegisters<216>();
    Begin(block);
    Consume<T, kDim, kSets, kScales>(block);
  } else {
    GiveRegisters<72>();
    if (warp == kProducerWarp) {
      Producer<T, kDim>(block).Run();
    } else {
      Begin(block);
      if (warp == kLookoutWarp) Lookout<T, kDim>(block).Run();
      if (warp >= kFirstFinisherWarp) Finisher<T, kScales>(block).Run();
    }
  }
#endif
}

// The kernel for so many rows.
template <typename T, int kDim, bool kScales>
auto DecodeStepKernelFor(int64_t batch) {
  if (batch <= kTokensOfSet) return DecodeStepKernel<T, kDim, 1, kScales>;
  if (batch <= 2 * kTokensOfSet) return DecodeStepKernel<T, kDim, 2, kScales>;
  return DecodeStepKernel<T, kDim, 4, kScales>;
}

template <typename T, int kDim>
void LaunchDecodeStep(Stream stream, const StepParams<T>& params, int grid) {
  const int64_t batch = params.args.sizes.batch;
  auto kernel = DecodeStepKernelFor<T, kDim, false>(batch);
  if constexpr (StepScalesOutputs<T>(NormKind::kRms)) {
    if (params.args.final_norm.kind == NormKind::kRms) {
      kernel = DecodeStepKernelFor<T, kDim, true>(batch);
    }
  }
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, params.memory.bytes);
  void* arguments[] = {const_cast<StepParams<T>*>(&params)};
  cudaLaunchCooperativeKernel(kernel, dim3(grid), dim3(kStepThreads), arguments,
                              params.memory.bytes, stream);
}

}  // namespace eet
