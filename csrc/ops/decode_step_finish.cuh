// The finisher warps: add the consumers' sums of each unit, and finish its outputs. A lane has two
// adjacent outputs of one token; where there are few tokens a warp takes several units at once.
#pragma once

#include "ops/decode_step_block.cuh"

namespace eet {

// All activations in one place: inlined, they would fill the instruction cache.
__device__ __noinline__ float ActivateOnce(Activation activation, float x) {
  return Activate(activation, x);
}

__device__ __forceinline__ float ActivateFast(Activation activation, float x) {
  return activation == Activation::kSilu ? x * Sigmoid(x) : ActivateOnce(activation, x);
}

template <typename T>
class Finisher {
 public:
  __device__ explicit Finisher(StepBlock<T>& block)
      : block_(block),
        lane_(LaneId()),
        first_token_((WarpId() - kFinisher) * kFinisherTokens),
        tokens_(max(0, min(block.batch() - first_token_, kFinisherTokens))),
        pairs_(tokens_ * kPairs),
        group_(block.params.memory.unit_group) {
    const int pair = lane_ % max(pairs_, 1);
    unit_ = lane_ / max(pairs_, 1);
    first_lane_ = pair;
    token_ = first_token_ + pair / kPairs;
    column_ = pair % kPairs * 2;
  }

  __device__ void Run() {
    if (tokens_ == 0) return;
    const int layers = int(block_.sizes().layers);
    LoadResidual();
    for (int layer = 0, i = 0; layer < layers || i == 0; i = (i + 1) % 4, layer += i == 0) {
      Finish(layer, kProducts[i]);
    }
  }

 private:
  static constexpr int kMostUnits = 4;          // that a warp takes at once
  static constexpr int kPairs = kTileRows / 2;  // of adjacent outputs, of a unit

  // Sums over the outputs of a token in two columns of all units, in the order of the units however
  // many are taken at once; every lane of the token and the columns has them.
  struct Moments {
    float sum = 0.0f, squares = 0.0f;
  };

  __device__ __forceinline__ void Add(Moments& moments, const float2& pair, bool valid) const {
    const float squares = valid ? pair.x * pair.x + pair.y * pair.y : 0.0f;
    const float sum = valid ? pair.x + pair.y : 0.0f;
    const bool both = block_.args().final_norm.kind == NormKind::kLayer;
#pragma unroll
    for (int i = 0; i < kMostUnits; ++i) {
      if (i == group_) break;
      moments.squares += __shfl_sync(kFullMask, squares, first_lane_ + i * pairs_);
      if (both) moments.sum += __shfl_sync(kFullMask, sum, first_lane_ + i * pairs_);
    }
  }

  // What becomes of a product's outputs; the head is the qkv product of a layer after the last.
  struct Outputs {
    Phase phase;
    bool head;
    int size;         // outputs of a token
    const T* bias;    // of the layer, or nullptr
    uint32_t* words;  // [batch, size / 2], where the others look for them
  };

  __device__ Outputs OutputsOf(int layer, Phase phase) const {
    const DecodeStepArgs<T>& args = block_.args();
    const DecodeStepSizes& sizes = args.sizes;
    const DecodeStepExchange& exchange = block_.params.exchange;
    const auto outputs = [&](int64_t size, const T* bias, int64_t offset) {
      return Outputs{phase, false, int(size), bias ? bias + layer * size : nullptr,
                     block_.Exchange(layer, offset)};
    };
    if (layer == sizes.layers) return {phase, true, int(sizes.vocab), nullptr, nullptr};
    switch (phase) {
      case Phase::kQkv:
        return outputs(sizes.qkv_size(), args.qkv_bias, 0);
      case Phase::kUp:
        return outputs(sizes.up_size(), args.up_bias, exchange.up);
      case Phase::kDown:
        return outputs(sizes.hidden, args.down_bias, exchange.down);
      default:
        return outputs(sizes.hidden, args.o_bias, exchange.attention_out);
    }
  }

  // Finishes a product's units as they come.
  __device__ void Finish(int layer, Phase phase) {
    const Outputs outputs = OutputsOf(layer, phase);
    const ProductShare share = block_.Share(outputs.size, kChunkColumns);
    const int batch = block_.batch();
    const float* sums = reinterpret_cast<const float*>(block_.memory + block_.params.memory.sums) +
                        token_ * kTileRows + column_;
    Moments moments;
    for (int first = share.begin; first < share.end; first += group_) {
      const int unit = first + unit_, taken = min(group_, share.end - first);
      const bool valid = unit_ < taken;
      // Every lane waits for its own unit.
      const RingPlace slot = Ahead(valid ? unit_ : 0);
      block_.watch.Until([&] { return block_.words.sums_full[slot.stage].TryWait(slot.parity); },
                         StepBlock<T>::kSumsWait);
      __syncwarp();
      float2 sum = {};
      if (valid) {
        const float* parts = sums + slot.stage * (kConsumers * batch * kTileRows);
#pragma unroll
        for (int warp = 0; warp < kConsumers; ++warp) {
          const float2 part = *reinterpret_cast<const float2*>(parts + warp * batch * kTileRows);
          sum = {sum.x + part.x, sum.y + part.y};
        }
      }
      __syncwarp();
      if (valid && first_lane_ == 0) block_.words.sums_empty[slot.stage].Arrive();
      Store(outputs, unit * kTileRows + column_, (unit - share.begin) * kTileRows + column_, sum,
            valid, moments);
      slot_ = Ahead(taken);
    }
    if (outputs.head) return;
    if (phase == Phase::kAttentionOut) Publish(moments, layer, 1);
    if (phase == Phase::kDown) Publish(moments, layer + 1, 0);
    __syncwarp();
    if (lane_ == 0 && !share.empty()) CountRelaxed(block_.Counter(layer, phase));
  }

  // Outputs `at` and the next, the block's rows `row` and the next. All lanes call it: of a gated
  // product two lanes have a word together.
  __device__ __forceinline__ void Store(const Outputs& outputs, int at, int row, float2 sum,
                                        bool valid, Moments& moments) {
    if (valid && outputs.bias) {
      sum.x += float(outputs.bias[at]);
      sum.y += float(outputs.bias[at + 1]);
    }
    int index = (token_ * outputs.size + at) / 2;
    if (outputs.head) {
      float* logits = block_.args().logits + int64_t{token_} * outputs.size + at;
      if (valid && at < outputs.size) logits[0] = sum.x;
      if (valid && at + 1 < outputs.size) logits[1] = sum.y;
      return;
    }
    if (outputs.phase == Phase::kUp) {
      const Activation activation = block_.args().activation;
      sum.x = ActivateFast(activation, sum.x);
      if (block_.sizes().gated) {
        sum.x *= sum.y;
        sum.y = __shfl_down_sync(kFullMask, sum.x, 1);
        valid = valid && lane_ % 2 == 0;
        index /= 2;
      } else {
        sum.y = ActivateFast(activation, sum.y);
      }
    } else if (outputs.phase != Phase::kQkv) {
      // The residual stream: the same rows belong to this block in all layers, in float32; the
      // others see them rounded.
      if (valid) {
        float2& stream = *Residual(row);
        sum = stream = {stream.x + sum.x, stream.y + sum.y};
      }
    }
    if (valid) StoreRelaxed(outputs.words + index, PackPair(sum.x, sum.y, kType));
    if (outputs.phase == Phase::kAttentionOut || outputs.phase == Phase::kDown) {
      Add(moments, sum, valid);
    }
  }

  __device__ void LoadResidual() {
    const int hidden = int(block_.sizes().hidden);
    const ProductShare share = block_.Share(hidden, hidden);
    Moments moments;
    for (int first = share.begin; first < share.end; first += group_) {
      const int unit = first + unit_;
      const bool valid = unit_ < group_ && unit < share.end;
      float2 values = {};
      if (valid) {
        const T* x = block_.args().x + token_ * hidden + unit * kTileRows + column_;
        values = {float(x[0]), float(x[1])};
        *Residual((unit - share.begin) * kTileRows + column_) = values;
      }
      Add(moments, values, valid);
    }
    __syncwarp();
    Publish(moments, 0, 0);
  }

  // Adds the columns of each token, and leaves the sums for all blocks.
  __device__ void Publish(const Moments& moments, int layer, int half) const {
    float totals[2] = {moments.sum, moments.squares};
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      totals[which] += __shfl_xor_sync(kFullMask, totals[which], 1);
      totals[which] += __shfl_xor_sync(kFullMask, totals[which], 2);
      if (unit_ == 0 && column_ == 0) {
        StoreRelaxed(block_.Statistics(layer, half, token_) +
                         which * DecodeStepExchange::kMaxBlocks + blockIdx.x,
                     __float_as_uint(totals[which]));
      }
    }
  }

  // The slot so many units ahead.
  __device__ RingPlace Ahead(int units) const {
    const int slots = block_.params.memory.sum_slots, stage = slot_.stage + units;
    return stage < slots ? RingPlace{stage, slot_.parity}
                         : RingPlace{stage - slots, slot_.parity ^ 1};
  }

  // Of a row of this block, for this lane's token.
  __device__ float2* Residual(int row) const {
    return reinterpret_cast<float2*>(block_.memory + block_.params.memory.residual) +
           row / 2 * block_.batch() + token_;
  }

  static constexpr std::type_identity<T> kType = {};

  StepBlock<T>& block_;
  const int lane_, first_token_, tokens_, pairs_, group_;
  // Of this lane: its unit of a group, the lane of the same outputs in the group's first unit, its
  // token, and the first of its two outputs in a unit.
  int unit_, first_lane_, token_, column_;
  RingPlace slot_;
};

}  // namespace eet
