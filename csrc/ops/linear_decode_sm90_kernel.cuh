// Linear for few rows on Hopper: weights read once at memory speed.
//
//   * Weights are the first operand of the tensor cores' products, 64 outputs for each of two
//     warpgroups; rows of x, here called tokens, are the columns of the second. So few
//     tokens waste nothing but their own columns.
//   * One thread issues TMA loads of weights and tokens into a ring, 64 columns at a time.
//     Two blocks share a multiprocessor: while one begins or ends, the other's weights stream.
//   * Inside a layer weights depend on no preceding kernel: the ring is full of them when it ends.
//   * Where tiles of 128 outputs are too few for all multiprocessors, the blocks of a cluster
//     divide a tile's columns. Then each sends the others the sums of their share of the outputs by
//     bulk copies (linear_decode_sm90_finish.cuh): so a layer's products take 68 us for 64 tokens
//     of Llama-3.2-1B on an H100. With loads from the others' shared memory it was 70 us.
//
// How often columns are divided depends on the kernel alone, and how many tokens a product has room
// for does not change the order of its sums: nor does a token's result depend on others.
#pragma once

#include "core/lanes.cuh"
#include "ops/linear_decode_sm90_finish.cuh"
#include "ops/linear_decode_sm90_norm.cuh"

namespace eet {

// How TMA finds x and kernel: boxes of 64 columns, zeros beyond the last.
struct LinearDecodeMaps {
  CUtensorMap tokens, weights;  // (in, rows, 1, 1) and (in, out, 1, 1)
};

// By one thread: issues loads into the ring.
template <class Shape>
class LinearDecodeLoader {
 public:
  __device__ LinearDecodeLoader(const LinearDecodeMaps& maps, const LinearDecodePart& part,
                                LinearDecodeShared<Shape>& shared)
      : maps_(maps), part_(part), shared_(shared), read_once_(ReadOncePolicy()) {}

  __device__ void Run() {
    const int ahead = min(part_.steps, Shape::kStages);
    for (int i = 0; i < ahead; ++i) LoadWeights(i, i);
    WaitForDependencies();
    for (int i = 0; i < ahead; ++i) LoadTokens(i, i);
    RingSlot<Shape::kStages> slot;
#pragma unroll 1
    for (int step = ahead; step < part_.steps; ++step) {
      shared_.empty[slot.index].Wait(slot.parity);
      LoadWeights(step, slot.index);
      LoadTokens(step, slot.index);
      slot.Advance();
    }
  }

 private:
  __device__ void LoadWeights(int step, int stage) {
    Barrier& full = shared_.full[stage];
    full.ArriveExpecting(Shape::kWeightBytes + Shape::kTokenBytes);
    TmaLoadOnce(SharedAddress(shared_.ring.weights[stage]), maps_.weights, ColumnOf(step),
                part_.out, 0, 0, full, read_once_);
  }

  __device__ void LoadTokens(int step, int stage) {
    TmaLoad(SharedAddress(shared_.ring.tokens[stage]), maps_.tokens, ColumnOf(step), part_.token, 0,
            0, shared_.full[stage]);
  }

  __device__ int ColumnOf(int step) const { return part_.first_col + step * Shape::kCols; }

  const LinearDecodeMaps& maps_;
  const LinearDecodePart& part_;
  LinearDecodeShared<Shape>& shared_;
  const uint64_t read_once_;
};

// By a warpgroup: multiplies 64 outputs' weights by all tokens.
template <class Shape>
class LinearDecodeMultiplier {
 public:
  using Sums = float[Shape::kTokens / 2];  // a thread's, as core/wgmma.cuh deals them

  __device__ LinearDecodeMultiplier(LinearDecodeShared<Shape>& shared, int group)
      : shared_(shared), group_(group) {}

  // Adds the products of `steps` stages, at least one.
  __device__ __forceinline__ void Multiply(int steps, Sums& sums) {
    Start(sums);
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      const int before = slot_.index;
      slot_.Advance();
      Start(sums);
      WgmmaWait<1>();
      Release(before);
    }
    WgmmaWait<0>(sums);
  }

  // Leaves the sums in shared memory, where the ring was: all groups are done with it. A warp's 16
  // outputs are of one share.
  __device__ __forceinline__ void Store(const Sums& sums) const {
    const int warp = threadIdx.x % kGroupThreads / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int warp_out = group_ * kGroupRows + warp * 16;
    auto& lines = shared_.SumsOf(warp_out / Shape::kShare);
    const int first_out = warp_out % Shape::kShare + lane / 4, first_token = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < Shape::kTokens / 2; ++i) {
      lines[i / 4 * 8 + first_token + i % 2][first_out + i / 2 % 2 * 8] = sums[i];
    }
  }

 private:
  // Starts sums += kernel x' of a stage.
  __device__ __forceinline__ void Start(Sums& sums) {
    constexpr int kStepBytes = 16 * Shape::kSpan / Shape::kCols;
    shared_.full[slot_.index].Wait(slot_.parity);
    const uint64_t weights = WgmmaDescriptor<Shape::kSpan>(
        SharedAddress(shared_.ring.weights[slot_.index]) + group_ * kGroupRows * Shape::kSpan);
    const uint64_t tokens =
        WgmmaDescriptor<Shape::kSpan>(SharedAddress(shared_.ring.tokens[slot_.index]));
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < Shape::kCols / 16; ++k) {
      Wgmma<typename Shape::T, Shape::kTokens>::FromShared(sums, weights + k * kStepBytes / 16,
                                                           tokens + k * kStepBytes / 16, true);
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void Release(int stage) {
    if (threadIdx.x % kWarpSize == 0) shared_.empty[stage].Arrive();
  }

  LinearDecodeShared<Shape>& shared_;
  const int group_;
  RingSlot<Shape::kStages> slot_;
};

template <class Shape, class Output>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    LinearDecodeSm90Kernel(const __grid_constant__ typename Output::Args args,
                           const __grid_constant__ LinearDecodeMaps maps,
                           const __grid_constant__ LinearDecodeSizes sizes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Cluster = typename Shape::Cluster;
  constexpr bool kInCluster = Shape::kSplits > 1;
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<LinearDecodeShared<Shape>*>(memory);
  if (threadIdx.x == 0) InitBarriers(shared);
  __syncthreads();
  if constexpr (kInCluster) Cluster::Arrive();  // this block can be sent to
  // The next kernel may count on those preceding this one only if this one has waited for them.
  if (!sizes.weights_are_ready) WaitForDependencies();
  LaunchDependents();
  const auto part = LinearDecodePart::Of(sizes.in, std::type_identity<Shape>{});
  const int group = Uniform(threadIdx.x / kGroupThreads);
  if (group == Shape::kGroups) {
    if (threadIdx.x == Shape::kConsumerThreads) LinearDecodeLoader<Shape>(maps, part, shared).Run();
    __syncwarp();
    if constexpr (kInCluster) Cluster::Wait();
    if constexpr (kInCluster) Cluster::Arrive();
  } else {
    const Output output(args);
    const int tokens = int(min(sizes.rows - part.token, int64_t{Shape::kTokens}));
    if constexpr (Output::kAppends) {  // three loads, one after the other, while weights come
      WaitForDependencies();
      const int token = threadIdx.x;
      if (token < tokens) shared.slots[token] = output.SlotOf(part.token + token);
    }
    const bool normed = Shape::kNorms && sizes.normed.squares;
    if (normed) {
      WaitForDependencies();
      FindInverses(sizes, part.token, tokens, shared);
    }
    LinearDecodeMultiplier<Shape> multiplier(shared, group);
    typename LinearDecodeMultiplier<Shape>::Sums sums = {};
    Pin(sums);  // products add to registers, not to what the compiler knows of them
    multiplier.Multiply(part.steps, sums);
    WaitAtBarrier<Shape::kConsumerThreads>(1);  // all groups are done with the ring
    multiplier.Store(sums);
    FenceAsyncProxy();
    WaitAtBarrier<Shape::kConsumerThreads>(1);
    if constexpr (kInCluster) Cluster::Wait();
    const LinearDecodeFinisher<Shape> finisher(shared, tokens, normed);
    finisher.Exchange();
    if constexpr (kInCluster) Cluster::Arrive();  // nobody sends to this block any more
    WaitForDependencies();                        // for the residual
    finisher.Finish(output, part, sizes.out);
  }
  if constexpr (kInCluster) Cluster::Wait();  // what this block has sent has arrived
#endif
}

}  // namespace eet
