// What a block of the decode step brings to shared memory before, and beside, the phases.
#pragma once

#include "ops/decode_step_block.cuh"

namespace eet {

constexpr int kStepThreads = kStepWarps * kWarpSize;
constexpr int kBeginBarrier = 1, kBegunBarrier = 2;  // of the hardware's named barriers

// This block's part of each product; by so many threads, before anything else.
template <typename T>
__device__ void FindUnits(StepBlock<T>& block, Product product) {
  const DecodeStepSizes& sizes = block.sizes();
  const int64_t outs[] = {sizes.qkv_size(), sizes.hidden, sizes.up_size(), sizes.hidden,
                          sizes.vocab};
  block.words.units[product] = UnitRange::Of(outs[product]);
}

// Barriers and words; by one thread, before anything else.
template <typename T>
__device__ void InitWords(StepBlock<T>& block) {
  StepWords& words = block.words;
  words.expired = 0;
  // All that there may be, in loops of constant length: compute-sanitizer learns from the compiler
  // how many barriers there are, and the compiler counts what it has unrolled.
#pragma unroll
  for (int i = 0; i < kMaxStages; ++i) {
    words.full[i].Init(1);
    words.empty[i].InitForWarps(kConsumerWarps);
  }
  const int finishers = block.finishers();
#pragma unroll
  for (int i = 0; i < kSumSlots; ++i) {
    words.sums_full[i].InitForWarps(kConsumerWarps);
    words.sums_empty[i].Init(kAllLanesArrive ? block.batch() * kUnitPairs : finishers);
  }
#pragma unroll
  for (int i = 0; i < kPhases; ++i) words.reported[i].InitForWarps(1);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    words.moments_found[i].InitForWarps(finishers);
    words.passed[i].InitForWarps(kConsumerWarps + finishers);
  }
  FenceBarrierInit();
}

// Brings scale and bias of a norm, counted through the step, into their place; by one warp.
template <typename T>
__device__ void BringNorm(const StepBlock<T>& block, int norm) {
  if (!block.params.memory.keeps_norms) return;
  const int hidden = int(block.sizes().hidden), lane = LaneId();
  const NormWeights<T> weights = block.NormAt(norm);
  const auto bring = [&](const T* from, bool bias) {
    const uint4* source = reinterpret_cast<const uint4*>(from);
    uint4* target = reinterpret_cast<uint4*>(block.KeptNorm(norm % 2, bias));
#pragma unroll 8
    for (int i = lane; i < hidden / 8; i += kWarpSize) target[i] = __ldg(source + i);
  };
  bring(weights.scale, false);
  if (weights.bias) bring(weights.bias, true);
  __syncwarp();
}

// What all phases look up, and the first norm. By all warps but the producer, whose tiles are
// under way meanwhile.
template <typename T>
__device__ __forceinline__ void Begin(StepBlock<T>& block) {
  constexpr int kThreads = kStepThreads - kWarpSize;
  const int warp = WarpId(), batch = block.batch();
  const int thread = int(threadIdx.x) - (warp > kProducerWarp ? kWarpSize : 0);
  const DecodeStepArgs<T>& args = block.args();
  if (warp == kLookoutWarp) BringNorm(block, 0);
  if (thread < batch) {
    block.words.rows[thread] = args.rows[thread];
    block.words.positions[thread] = args.positions[thread];
    block.words.pages[thread] = block.PageOf(thread);
  }
  for (int i = thread; i < batch * args.sizes.rotary_dim; i += kThreads) {
    const_cast<float*>(block.Rotary(0))[i] = args.rotary_table[i];
  }
  for (int i = thread; i < args.sizes.layers; i += kThreads) {
    reinterpret_cast<int*>(block.memory + block.params.memory.windows)[i] =
        args.windows ? args.windows[i] : args.window;
  }
  // Tiles are multiplied whole: what lies behind a short input must be no NaN.
  uint4* input = reinterpret_cast<uint4*>(block.memory + block.params.memory.input);
  const int pieces = block.params.memory.slab_chunks * batch * (kChunkColumns * 2 / 16);
  for (int i = thread; i < pieces; i += kThreads) input[i] = {};
  ArriveAtBarrier<kStepThreads>(kBegunBarrier);
  WaitAtBarrier<kThreads>(kBeginBarrier);
}

// For the producer: waits until what Begin brings is there.
__device__ __forceinline__ void AwaitBegun() { WaitAtBarrier<kStepThreads>(kBegunBarrier); }

}  // namespace eet
