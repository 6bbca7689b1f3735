// The second round of the decode step's attention: what the splits of a row have published becomes
// the attended heads. A warp takes some columns of one head.
#pragma once

#include "ops/decode_step_split.cuh"

namespace eet {

template <typename T, int kDim>
class Merger {
 public:
  __device__ explicit Merger(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()) {}

  // All tasks of a layer that this warp has.
  __device__ void Run(int layer, const ItemDeal<T>& deal) {
    const int tasks = deal.tasks(), stride = int(gridDim.x) * kConsumerWarps;
    const int first = warp_ * int(gridDim.x) + int(blockIdx.x);
    if (first >= tasks) return;
    block_.Trace(layer, Phase::kAttended, StepEvent::kBegan);
    block_.AwaitReport(layer, Phase::kPartials);
    for (int task = first; task < tasks; task += stride) {
      const MergeTask merge = deal.Task(task);
      // What runs is as long as what there is to merge: code that is not in a cache takes longer to
      // come than to run.
      if (merge.splits <= kLanesSplits) {
        MergeOne<1>(layer, merge);
      } else {
        MergeOne<kMaxSplits / kLanesSplits>(layer, merge);
      }
    }
    __syncwarp();
    if (lane_ == 0) CountRelaxed(block_.Counter(layer, Phase::kAttended));
    block_.Trace(layer, Phase::kAttended, StepEvent::kFinished);
  }

 private:
  static constexpr int kHeadWords = kDim / 2;

  static constexpr int kLanesSplits = kWarpSize / 2;

  // Lane s * 2 + c sums eight columns of splits s, s + 16, ..., of which there are at most kMost.
  template <int kMost>
  __device__ __forceinline__ void MergeOne(int layer, const MergeTask& task) {
    const DecodeStepExchange& exchange = block_.params.exchange;
    const int64_t head = task.token * block_.sizes().heads + task.head;
    const uint32_t* log_words = block_.Exchange(layer, exchange.log_sums) + head * exchange.splits;
    const uint32_t* words = block_.Exchange(layer, exchange.partials) +
                            head * exchange.splits * kHeadWords + task.column / 2 + lane_ % 2 * 4;
    uint4 parts[kMost];
    uint32_t logs[kMost];
    const auto load = [&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        const int split = lane_ / 2 + 16 * i;
        const bool exists = split < task.splits;
        parts[i] = exists ? LoadRelaxed4(words + split * kHeadWords) : uint4{};
        logs[i] = exists ? LoadRelaxed(log_words + split) : __float_as_uint(-INFINITY);
      }
#pragma unroll
      for (int i = 0; i < kMost; ++i) there = there && IsThere(parts[i]) && IsThere(logs[i]);
      return there;
    };
    block_.watch.Until(load, StepBlock<T>::What(layer, Phase::kPartials));
    __syncwarp();
    block_.Trace(layer, Phase::kAttended, StepEvent::kStaged);
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kMost; ++i) largest = fmaxf(largest, __uint_as_float(logs[i]));
    largest = AcrossSplits(largest, Max{});
    float sum = 0.0f, values[8] = {};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const float weight = Exp2(__uint_as_float(logs[i]) - largest);
      sum += weight;
      float part[8];
      Unpack<T>(parts[i], part);
#pragma unroll
      for (int c = 0; c < 8; ++c) values[c] += weight * part[c];
    }
    const float factor = 1.0f / AcrossSplits(sum, Sum{});
    // Each step adds the lanes' halves, and halves the columns.
    float four[4], two[2];
    AddHalves(values, four, 16);
    AddHalves(four, two, 8);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      two[c] += __shfl_xor_sync(kFullMask, two[c], 4);
      two[c] += __shfl_xor_sync(kFullMask, two[c], 2);
    }
    if ((lane_ & 6) == 0) {
      const int word = lane_ % 2 * 4 + (lane_ & 16 ? 2 : 0) + (lane_ & 8 ? 1 : 0);
      StoreRelaxed(
          block_.Exchange(layer, exchange.attended) + head * kHeadWords + task.column / 2 + word,
          PackPair(two[0] * factor, two[1] * factor, std::type_identity<T>{}));
    }
  }

  // This lane's half of the columns, added to those of the lane that has the other half.
  template <int kCount>
  __device__ __forceinline__ void AddHalves(const float (&values)[2 * kCount],
                                            float (&sums)[kCount], int lanes) const {
    const bool upper = lane_ & lanes;
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const float kept = upper ? values[c + kCount] : values[c];
      const float given = upper ? values[c] : values[c + kCount];
      sums[c] = kept + __shfl_xor_sync(kFullMask, given, lanes);
    }
  }

  template <typename Op>
  __device__ static float AcrossSplits(float value, Op op) {
#pragma unroll
    for (int lanes = 2; lanes < kWarpSize; lanes *= 2) {
      value = op(value, __shfl_xor_sync(kFullMask, value, lanes));
    }
    return value;
  }

  StepBlock<T>& block_;
  const int warp_, lane_;
};

}  // namespace eet
