// The finisher warps: add the consumers' sums of each unit, and finish its outputs. A lane has two
// adjacent outputs of one token; where there are few tokens a warp takes several units at once.
//
// All blocks wait for the slowest finisher, so whatever does not need the sums comes before them:
// biases, rotation, the residual stream, the moments of the norm. What nobody waits for comes last.
#pragma once

#include "ops/activation.cuh"
#include "ops/decode_step_block.cuh"

namespace eet {

// kScales: norms scale outputs (StepScalesOutputs).
template <typename T, bool kScales>
class Finisher {
 public:
  __device__ explicit Finisher(StepBlock<T>& block)
      : block_(block),
        lane_(LaneId()),
        warp_(WarpId() - kFirstFinisherWarp),
        first_token_(warp_ * kFinisherTokens),
        tokens_(max(0, min(block.batch() - first_token_, kFinisherTokens))),
        group_(block.params.memory.unit_group) {
    const int pairs = max(tokens_, 1) * kUnitPairs, pair = lane_ % pairs;
    unit_ = lane_ / pairs;
    token_ = first_token_ + pair / kUnitPairs;
    column_ = pair % kUnitPairs * 2;
    releases_ = kAllLanesArrive || pair == 0;
  }

  __device__ void Run() {
    if (tokens_ == 0) return;
    const DecodeStepSizes& sizes = block_.sizes();
    LoadResidual();
    // One call of each, so that the code stays small.
    for (int layer = 0, i = 0;; i = (i + 1) % kLayerProducts, layer += i == 0) {
      const bool head = layer == sizes.layers, up = kPhaseOf[i] == Phase::kUp;
      if (up || kPhaseOf[i] == Phase::kQkv) FindMoments(layer, up);
      if (head) return FinishHead();
      switch (kPhaseOf[i]) {
        case Phase::kQkv:
          FinishQkv(layer);
          break;
        case Phase::kUp:
          FinishUp(layer);
          break;
        default:
          FinishResidual(layer, kPhaseOf[i]);
      }
    }
  }

 private:
  static constexpr std::type_identity<T> kType = {};

  // Takes units of a share as they come: prepare(at, valid) before the sums are there, then
  // store(prepared, at, sum, valid). `at` is the first of the lane's two outputs; it has none
  // where not `valid`.
  template <typename Prepare, typename Store>
  __device__ __forceinline__ void Take(const UnitRange& share, Prepare&& prepare, Store&& store) {
    const int line = block_.batch() * kSumsLine;
    const float* sums = reinterpret_cast<const float*>(block_.memory + block_.params.memory.sums) +
                        token_ * kSumsLine + column_;
    for (int first = share.begin; first < share.end; first += group_) {
      const int taken = min(group_, share.end - first);
      const bool valid = unit_ < taken;
      const int at = (first + (valid ? unit_ : 0)) * kTileRows + column_;
      const auto prepared = prepare(at, valid);
      // Every lane waits for its own unit.
      const RingPlace slot = Ahead(valid ? unit_ : 0);
      const float* parts = sums + slot.stage * line;
      block_.watch.Until([&] { return block_.words.sums_full[slot.stage].TryWait(slot.parity); },
                         StepBlock<T>::kSumsWait);
      __syncwarp();
      float2 sum = {};
      if (valid || !kAllLanesArrive) {  // under racecheck lanes that arrive must have read
#pragma unroll
        for (int warp = 0; warp < kConsumerWarps; ++warp) {
          const float2 part = *reinterpret_cast<const float2*>(parts + warp * kTileRows);
          sum = {sum.x + part.x, sum.y + part.y};
        }
      }
      store(prepared, at, sum, valid);
      __syncwarp();
      if (valid && releases_) block_.words.sums_empty[slot.stage].Arrive();
      slot_ = Ahead(taken);
    }
  }

  // Tells the lookouts that this warp's part of a phase is there.
  __device__ __forceinline__ void Count(const UnitRange& share, int layer, Phase phase) {
    __syncwarp();
    if (lane_ == 0 && !share.empty()) CountRelaxed(block_.Counter(layer, phase));
    block_.Trace(layer, phase, StepEvent::kFinished);
  }

  // The lane's word of outputs `at` and the next in a phase's results.
  __device__ __forceinline__ uint32_t* Word(int layer, int64_t offset, int64_t size, int at) const {
    return block_.Exchange(layer, offset) + (token_ * int(size) + at) / 2;
  }

  __device__ __forceinline__ static float2 Bias(const T* bias, int64_t first, bool valid) {
    if (!bias || !valid) return {};
    return {float(bias[first]), float(bias[first + 1])};
  }

  // Queries and keys are rotated here, where a lane has one pair of them, unless a norm of the
  // whole head comes first.
  __device__ __forceinline__ void FinishQkv(int layer) {
    const DecodeStepArgs<T>& args = block_.args();
    const DecodeStepSizes& sizes = args.sizes;
    const int size = int(sizes.qkv_size()), dim = int(sizes.head_dim);
    const int group = int(sizes.heads / sizes.kv_heads) + 2;
    const UnitRange share = block_.words.units[kQkvProduct];
    struct Prepared {
      float2 bias, rotation;  // cosine and sine
    };
    const auto prepare = [&](int at, bool valid) {
      Prepared prepared = {Bias(args.qkv_bias, int64_t{layer} * size + at, valid), {1.0f, 0.0f}};
      const int head = at / dim, column = at % dim;
      if (!block_.NormsHeads() && head % group != group - 1 && column < sizes.rotary_dim) {
        prepared.rotation = *reinterpret_cast<const float2*>(block_.Rotary(token_) + column);
      }
      return prepared;
    };
    Take(share, prepare, [&](const Prepared& prepared, int at, float2 sum, bool valid) {
      const float2 x = {sum.x * scale_ + prepared.bias.x, sum.y * scale_ + prepared.bias.y};
      const auto [cosine, sine] = prepared.rotation;
      const uint32_t word = PackPair(x.x * cosine - x.y * sine, x.y * cosine + x.x * sine, kType);
      if (valid) StoreRelaxed(Word(layer, 0, size, at), word);
    });
    Count(share, layer, Phase::kQkv);
  }

  __device__ __forceinline__ void FinishUp(int layer) {
    const DecodeStepArgs<T>& args = block_.args();
    const int size = int(args.sizes.up_size());
    const int64_t intermediate = args.sizes.intermediate, offset = block_.params.exchange.up;
    const Activation activation = args.activation;
    const UnitRange share = block_.words.units[kUpProduct];
    const auto prepare = [&](int at, bool valid) {
      return Bias(args.up_bias, int64_t{layer} * size + at, valid);
    };
    Take(share, prepare, [&](float2 bias, int at, float2 sum, bool valid) {
      float2 x = {sum.x * scale_ + bias.x, sum.y * scale_ + bias.y};
      x.x = ActivateFast(activation, x.x);
      if (args.sizes.gated) {  // two lanes have a word together
        x.x *= x.y;
        x.y = __shfl_down_sync(kFullMask, x.x, 1);
        valid = valid && lane_ % 2 == 0;
        at /= 2;
      } else {
        x.y = ActivateFast(activation, x.y);
      }
      if (valid) StoreRelaxed(Word(layer, offset, intermediate, at), PackPair(x.x, x.y, kType));
    });
    Count(share, layer, Phase::kUp);
  }

  // The residual stream: the same rows belong to this block in all layers, in float32; the others
  // see them rounded.
  __device__ __forceinline__ void FinishResidual(int layer, Phase phase) {
    const DecodeStepArgs<T>& args = block_.args();
    const DecodeStepExchange& exchange = block_.params.exchange;
    const bool down = phase == Phase::kDown;
    const T* biases = down ? args.down_bias : args.o_bias;
    const int64_t offset = down ? exchange.down : exchange.attention_out;
    const int hidden = int(args.sizes.hidden);
    const UnitRange share = block_.words.units[kOutProduct];
    const auto prepare = [&](int at, bool valid) {
      const float2 stream = *Residual(share, at);
      const float2 bias = Bias(biases, int64_t{layer} * hidden + at, valid);
      return float2{stream.x + bias.x, stream.y + bias.y};
    };
    Take(share, prepare, [&](float2 stream, int at, float2 sum, bool valid) {
      stream = {stream.x + sum.x, stream.y + sum.y};
      if (!valid) return;
      StoreRelaxed(Word(layer, offset, hidden, at), PackPair(stream.x, stream.y, kType));
      *Residual(share, at) = stream;
    });
    Count(share, layer, phase);
    PublishStatistics(2 * layer + 1 + down, share);
  }

  __device__ __forceinline__ void FinishHead() {
    const DecodeStepArgs<T>& args = block_.args();
    const int vocab = int(args.sizes.vocab);
    const UnitRange share = block_.words.units[kHeadProduct];
    const float scale = block_.words.rows[token_] < 0 ? NAN : scale_;
    float* logits = args.logits + int64_t{token_} * vocab;
    Take(
        share, [](int, bool) { return 0; },
        [&](int, int at, float2 sum, bool valid) {
          if (valid && at < vocab) logits[at] = sum.x * scale;
          if (valid && at + 1 < vocab) logits[at + 1] = sum.y * scale;
        });
    block_.Trace(int(args.sizes.layers), Phase::kQkv, StepEvent::kFinished);
  }

  __device__ void LoadResidual() {
    const int hidden = int(block_.sizes().hidden);
    const UnitRange share = block_.words.units[kOutProduct];
    if (unit_ == 0) {
      for (int unit = share.begin; unit < share.end; ++unit) {
        const int at = unit * kTileRows + column_;
        const T* x = block_.args().x + token_ * hidden + at;
        *Residual(share, at) = {float(x[0]), float(x[1])};
      }
    }
    __syncwarp();
    PublishStatistics(0, share);
  }

  // Leaves this block's sums over the stream for the finishers of all blocks.
  __device__ __forceinline__ void PublishStatistics(int norm, const UnitRange& share) {
    float squares = 0.0f, sum = 0.0f;
    for (int unit = share.begin; unit < share.end; ++unit) {
      const float2 stream = *Residual(share, unit * kTileRows + column_);
      squares += stream.x * stream.x + stream.y * stream.y;
      sum += stream.x + stream.y;
    }
    const bool writes = unit_ == 0 && column_ == 0;
    const auto publish = [&](int which, float total) {
#pragma unroll
      for (int lanes = 1; lanes < kUnitPairs; lanes *= 2) {
        total += __shfl_xor_sync(kFullMask, total, lanes);
      }
      constexpr int kMaxBlocks = int(DecodeStepExchange::kMaxBlocks);
      uint32_t* words = block_.Statistics(norm, which) + token_ * kMaxBlocks + blockIdx.x;
      if (writes) StoreRelaxed(words, __float_as_uint(total));
    };
    publish(0, squares);
    if (IsLayerNorm()) publish(1, sum);
  }

  // Adds the blocks' sums over the stream for the norm before a layer's attention, or `up` its
  // feed-forward. Either the outputs of this warp's tokens are scaled by what follows, or the
  // consumers find it in shared memory.
  __device__ __forceinline__ void FindMoments(int layer, bool up) {
    const int norm = 2 * layer + up;
    if (up) {
      block_.AwaitReport(layer, Phase::kAttentionOut);
    } else if (layer > 0) {
      block_.AwaitReport(layer - 1, Phase::kDown);
    }
    const float2 totals = Totals(norm);
    const float per_column = 1.0f / float(block_.sizes().hidden);
    const float square = totals.x * per_column, mean = totals.y * per_column;
    const float variance = fmaxf(square - mean * mean, 0.0f);
    const float inverse = rsqrtf(variance + block_.args().final_norm.eps);
    if constexpr (kScales) {
      scale_ = __shfl_sync(kFullMask, inverse, (token_ - first_token_) * kTokenLanes);
    } else {
      LeaveMoments(norm, {mean, inverse});
    }
    block_.Pass(norm);
  }

  // Leaves a token's moments, in its lanes of Total, for the consumers.
  __device__ __forceinline__ void LeaveMoments(int norm, float2 moments) {
    const int token = lane_ / kTokenLanes;
    if (lane_ % kTokenLanes == 0 && token < tokens_) {
      block_.words.moments[first_token_ + token] = moments;
    }
    __syncwarp();
    block_.words.moments_found[norm % 2].ArriveAsWarp(lane_);
  }

  static constexpr int kTokenLanes = kWarpSize / kFinisherTokens;

  // Sums over the stream of the warp's tokens: of squares and, for layer norm, of the stream
  // itself; token t's are in lanes t * kTokenLanes and after. Few tokens leave half of the lanes
  // for the second sum.
  __device__ __forceinline__ float2 Totals(int norm) {
    constexpr int kHalf = kWarpSize / 2;
    const bool halves = IsLayerNorm() && tokens_ <= kFinisherTokens / 2;
    const int lane = halves ? lane_ % kHalf : lane_;
    float2 totals = {};
    totals.x = Total(norm, halves ? lane_ / kHalf : 0, lane / kTokenLanes);
    if (halves) {
      return {__shfl_sync(kFullMask, totals.x, lane),
              __shfl_sync(kFullMask, totals.x, lane + kHalf)};
    }
    if (IsLayerNorm()) totals.y = Total(norm, 1, lane / kTokenLanes);
    return totals;
  }

  // The blocks' sums of a token, by kTokenLanes lanes and always in the same order. The number of
  // blocks is a multiple of four.
  __device__ __forceinline__ float Total(int norm, int which, int token) {
    constexpr int kMaxBlocks = int(DecodeStepExchange::kMaxBlocks);
    constexpr int kStep = 4 * kTokenLanes, kLoads = kMaxBlocks / kStep;
    const int first = lane_ % kTokenLanes * 4;
    const uint32_t* words =
        block_.Statistics(norm, which) + (first_token_ + token) * kMaxBlocks + first;
    uint4 sums[kLoads];
    const auto load = [&] {
      bool there = true;
#pragma unroll
      for (int n = 0; n < kLoads; ++n) {
        const bool exists = token < tokens_ && first + n * kStep < int(gridDim.x);
        sums[n] = exists ? LoadRelaxed4(words + n * kStep) : uint4{};
      }
#pragma unroll
      for (int n = 0; n < kLoads; ++n) there = there && IsThere(sums[n]);
      return there;
    };
    block_.watch.Until(load, StepBlock<T>::kMomentsWait);
    __syncwarp();
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      total += (__uint_as_float(sums[n].x) + __uint_as_float(sums[n].y)) +
               (__uint_as_float(sums[n].z) + __uint_as_float(sums[n].w));
    }
#pragma unroll
    for (int lanes = 1; lanes < kTokenLanes; lanes *= 2) {
      total += __shfl_xor_sync(kFullMask, total, lanes);
    }
    return total;
  }

  __device__ bool IsLayerNorm() const {
    return !kScales && block_.args().final_norm.kind == NormKind::kLayer;
  }

  // The slot so many units ahead.
  __device__ RingPlace Ahead(int units) const {
    const int slots = block_.params.memory.sum_slots, stage = slot_.stage + units;
    return stage < slots ? RingPlace{stage, slot_.parity}
                         : RingPlace{stage - slots, slot_.parity ^ 1};
  }

  // Where this block keeps outputs `at` and the next of the stream, for this lane's token.
  __device__ float2* Residual(const UnitRange& share, int at) const {
    return reinterpret_cast<float2*>(block_.memory + block_.params.memory.residual) +
           (at - share.begin * kTileRows) / 2 * block_.batch() + token_;
  }

  StepBlock<T>& block_;
  const int lane_, warp_, first_token_, tokens_, group_;
  // This lane's: its unit of a group, its token, the first of its two outputs in a unit, and
  // whether it says that a unit's sums have been read.
  int unit_, token_, column_;
  bool releases_;
  float scale_ = 1.0f;  // of the token's outputs, after a norm
  RingPlace slot_;
};

}  // namespace eet
