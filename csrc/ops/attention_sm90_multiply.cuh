// The warpgroups of attention on Hopper that multiply: 64 queries each.
#pragma once

#include "core/lanes.cuh"
#include "core/turns.cuh"
#include "ops/attention_sm90_softmax.cuh"

namespace eet {

template <class Shape>
class AttentionMultiplier {
 public:
  using T = typename Shape::T;
  static constexpr int kDim = Shape::kDim;

  __device__ __forceinline__ AttentionMultiplier(const AttentionArgs<T>& args,
                                                 AttentionShared<Shape>& shared, int group)
      : args_(args),
        shared_(shared),
        turns_{group},
        group_(group),
        queries_(WgmmaDescriptor<Shape::kSpan>(SharedAddress(shared.queries[group]))) {}

  __device__ __forceinline__ void Run() {
    turns_.Begin();
    for (RingSlot<kUnitSlots> slot;; slot.Advance()) {
      shared_.unit_full[slot.index].Wait(slot.parity);
      const Unit& unit = shared_.units[slot.index];
      const int count = Uniform(unit.count);
      if (count == 0) return;
      Work(unit, count);
      __syncwarp();
      if (Arrives()) shared_.unit_empty[slot.index].Arrive();
    }
  }

 private:
  using Values = float[kDim / 2];  // as Scores, of columns instead of keys

  static __device__ __forceinline__ int Lane() { return threadIdx.x % kWarpSize; }

  // As in Barrier::ArriveAsWarp, with which the compiler would keep the lane in a register.
  static __device__ __forceinline__ bool Arrives() { return kAllLanesArrive || Lane() == 0; }

  // The first of this thread's two queries in the unit.
  __device__ __forceinline__ int FirstQuery() const {
    return group_ * kGroupRows + threadIdx.x % kGroupThreads / kWarpSize * 16 + Lane() / 4;
  }

  __device__ __forceinline__ void Work(const Unit& unit, int count) {
    const int lead = Uniform(unit.lead), full = Uniform(unit.full), trail = Uniform(unit.trail);
    int tile = Uniform(unit.last_tile);
    SoftmaxPair softmax;
    Values values;
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) values[i] = 0.0f;
    if (lead + full + trail > 0) {
      Weights<Shape> weights;
      First(unit, tile, softmax, weights);
      const int lead_end = tile - max(lead, 1), full_end = tile - lead - full;
      const int end = full_end - trail;
      --tile;
#pragma unroll 1
      for (; tile > lead_end; --tile) Step<true>(unit, tile, softmax, weights, values);
#pragma unroll 1
      for (; tile > full_end; --tile) Step<false>(unit, tile, softmax, weights, values);
#pragma unroll 1
      for (; tile > end; --tile) Step<true>(unit, tile, softmax, weights, values);
      if (Arrives()) shared_.query_empty[group_].Arrive();
      Last(weights, values);
    }
    Write(unit, count, softmax, values);
  }

  // Starts scores = queries keys'.
  __device__ __forceinline__ void StartScores(Scores<Shape>& scores) {
    const uint64_t keys =
        WgmmaDescriptor<Shape::kSpan>(SharedAddress(shared_.keys[key_slot_.index]));
    constexpr int kSteps = Shape::kChunk / 16;
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      constexpr int kQueryChunk = kGroupRows * Shape::kSpan,
                    kKeyChunk = Shape::kKeys * Shape::kSpan;
      Wgmma<T, Shape::kKeys>::FromShared(
          scores, queries_ + (k / kSteps * kQueryChunk + k % kSteps * 32) / 16,
          keys + (k / kSteps * kKeyChunk + k % kSteps * 32) / 16, k > 0);
    }
    WgmmaCommit();
  }

  // Starts sums += weights values.
  __device__ __forceinline__ void StartValues(const Weights<Shape>& weights, Values& sums) {
    const uint64_t values = WgmmaDescriptor<Shape::kSpan>(
        SharedAddress(shared_.values[value_slot_.index]), Shape::kKeys * Shape::kSpan);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < Shape::kKeys / 16; ++k) {
      Wgmma<T, kDim>::FromRegisters(sums, weights + 4 * k, values + k * 16 * Shape::kSpan / 16);
    }
    WgmmaCommit();
  }

  __device__ __forceinline__ void AwaitKeys() {
    shared_.key_full[key_slot_.index].Wait(key_slot_.parity);
  }

  __device__ __forceinline__ void AwaitValues(RingSlot<Shape::kStages> slot) {
    shared_.value_full[slot.index].Wait(slot.parity);
  }

  __device__ __forceinline__ void ReleaseKeys() {
    if (Arrives()) shared_.key_empty[key_slot_.index].Arrive();
    key_slot_.Advance();
  }

  __device__ __forceinline__ void ReleaseValues() {
    if (Arrives()) shared_.value_empty[value_slot_.index].Arrive();
    value_slot_.Advance();
  }

  // From products to weights.
  template <bool kMasked>
  __device__ __forceinline__ void Weigh(const Unit& unit, int tile, SoftmaxPair& softmax,
                                        float (&factors)[2], Scores<Shape>& scores) {
    const int key = tile * Shape::kKeys + Lane() % 4 * 2, position = unit.position + FirstQuery();
    float scale = args_.scale * kLog2E;
    if constexpr (Shape::kBiased) {
      const float slope = args_.alibi_slopes ? args_.alibi_slopes[unit.head] : 0.0f;
      Bias<Shape>(args_, slope, key, position, scores);
      scale = 1.0f;
    }
    if constexpr (kMasked) Mask<Shape>(args_, unit.length, key, position, scores);
    ToWeights<Shape, kMasked>(scale, softmax, factors, scores);
  }

  __device__ __forceinline__ void First(const Unit& unit, int tile, SoftmaxPair& softmax,
                                        Weights<Shape>& weights) {
    shared_.query_full[group_].Wait(query_parity_);
    query_parity_ ^= 1;
    AwaitKeys();
    Scores<Shape> scores;
    StartScores(scores);
    WgmmaWait<0>(scores);
    ReleaseKeys();
    float factors[2];
    Weigh<true>(unit, tile, softmax, factors, scores);
    AwaitValues(value_slot_);
    PackWeights<Shape>(scores, weights);
  }

  // Multiplies the weights of the tile before with its values while the weights of this tile are
  // computed. Values are waited for a step ahead.
  template <bool kMasked>
  __device__ __forceinline__ void Step(const Unit& unit, int tile, SoftmaxPair& softmax,
                                       Weights<Shape>& weights, Values& values) {
    Scores<Shape> scores;
    AwaitKeys();
    turns_.Wait();
    StartScores(scores);
    StartValues(weights, values);
    turns_.Pass();
    WgmmaWait<1>(scores);
    ReleaseKeys();
    float factors[2];
    Weigh<kMasked>(unit, tile, softmax, factors, scores);
    // Before the products are waited for: else the compiler has the weights wait for them, too.
    Pin(scores);
    RingSlot<Shape::kStages> next = value_slot_;
    next.Advance();
    AwaitValues(next);
    WgmmaWait<0>(values);
    Pin(weights);
    ReleaseValues();
    PackWeights<Shape>(scores, weights);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) values[i] *= factors[i / 2 % 2];
  }

  __device__ __forceinline__ void Last(const Weights<Shape>& weights, Values& values) {
    StartValues(weights, values);
    WgmmaWait<0>(values);
    ReleaseValues();
  }

  __device__ __forceinline__ void Write(const Unit& unit, int count, SoftmaxPair& softmax,
                                        Values& values) {
    const int64_t stride = args_.heads * kDim;
    T* out = args_.out + int64_t{unit.token + FirstQuery()} * stride + unit.head * kDim;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = softmax.sum[i];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      sum += __shfl_xor_sync(kFullMask, sum, 2);
      const float normalizer = sum > 0.0f ? 1.0f / sum : 0.0f;
      WriteRow(values, i, normalizer, out + 8 * i * stride, FirstQuery() + 8 * i < count);
    }
  }

  // One row of four lanes, which first exchange words so that each has eight neighbours.
  __device__ __forceinline__ void WriteRow(const Values& values, int i, float normalizer, T* out,
                                           bool valid) {
    constexpr int kBlocks = kDim / 8;
    const int lane = Lane() % 4;
    const auto word = [&](int n) {
      return PackPair(values[4 * n + 2 * i] * normalizer, values[4 * n + 2 * i + 1] * normalizer,
                      std::type_identity<T>{});
    };
#pragma unroll
    for (int n = 0; n + 4 <= kBlocks; n += 4) {
      uint32_t words[4] = {word(n), word(n + 1), word(n + 2), word(n + 3)};
      TransposeFour(words);
      if (valid) {
        reinterpret_cast<uint4*>(out)[n + lane] = {words[0], words[1], words[2], words[3]};
      }
    }
#pragma unroll
    for (int n = kBlocks / 4 * 4; n < kBlocks; ++n) {
      if (valid) reinterpret_cast<uint32_t*>(out)[4 * n + lane] = word(n);
    }
  }

  const AttentionArgs<T>& args_;
  AttentionShared<Shape>& shared_;
  const Turns<Shape::kGroups> turns_;  // in starting products
  const int group_;
  const uint64_t queries_;
  RingSlot<Shape::kStages> key_slot_, value_slot_;
  int query_parity_ = 0;
};

}  // namespace eet
