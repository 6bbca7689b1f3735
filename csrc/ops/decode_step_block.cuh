// What the warps of a block of the decode step share: parameters, shared memory, the ring of tiles.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/tensor_map.h"
#include "core/tma.cuh"
#include "ops/decode_step.h"
#include "ops/decode_step_profile.cuh"
#include "ops/decode_step_wait.cuh"

namespace eet {

// Roles of warps.
constexpr int kConsumerWarps = 8;       // the first: multiply and attend
constexpr int kProducerWarp = 8;        // loads tiles
constexpr int kLookoutWarp = 9;         // watches the counters
constexpr int kFirstFinisherWarp = 10;  // add the consumers' sums and finish outputs
constexpr int kFinisherWarps = 2;       // the second for tokens from 8 on
constexpr int kFinisherTokens = 8;
constexpr int kMaxUnitGroup = 4;  // units that a finisher takes at once, at most
constexpr int kStepWarps = 12;

// A tile is what one copy brings: 8 rows and 16 chunks of 64 columns of a weight, or as many keys
// and values of a head.
constexpr int kTileRows = 8, kTileChunks = 16;
constexpr int kUnitPairs = kTileRows / 2;  // of adjacent outputs: a finisher's lane has one
constexpr int kTileBytes = kTileRows * kTileChunks * kChunkColumns * 2;
constexpr int kMaxStages = 13;
constexpr int kSumSlots = 8;      // units under way from the consumers to the finishers, at most
constexpr int kKnownTiles = 512;  // of the cache, whose rows a block remembers, at most
constexpr int kSumsLine =
    (kConsumerWarps + 1) * kTileRows;  // a token's, so that banks do not collide

// Offsets in shared memory, in bytes, and how much of the input it holds.
//
//   | ring: stages x 16 KiB | input | norms | sums | residual | rotary | windows | words |
//
//   input     [slab_chunks, batch, 64]    a slab of the product's input, each warp its own chunks
//   norms     [2, 1 or 2, hidden]         of attention and feed-forward: scale, and bias if any;
//                                         not there where they are too wide
//   sums      [slots, batch, 72]          float32, 8 outputs of each consumer, and 8 of padding
//   residual  [rows of this block, batch] float32, the residual stream where this block owns it
//   rotary    [batch, rotary_dim]         float32, cosines and sines
//   windows   [layers]                    int32
struct StepMemory {
  int stages, slab_chunks;
  int sum_slots, unit_group;  // of units: under way, and taken by a finisher at once
  bool keeps_norms;           // else they are read where they are
  int input, norms, sums, residual, rotary, windows, words;
  int bytes;
};

// The products of a step: those of a layer in the order of a token, and the head after the last
// layer.
enum Product : int { kQkvProduct, kOutProduct, kUpProduct, kDownProduct, kHeadProduct };
constexpr int kLayerProducts = 4, kProducts = 5;

// A block's units of eight outputs of a product.
struct UnitRange {
  int begin, end;

  __device__ static int Units(int64_t out) { return int((out + kTileRows - 1) / kTileRows); }

  __device__ bool empty() const { return begin == end; }

  // Blocks that have any.
  __device__ static int Blocks(int64_t out) { return min(Units(out), int(gridDim.x)); }

  __device__ static UnitRange Of(int64_t out) {
    const uint32_t units = uint32_t(Units(out));
    return {int(units * blockIdx.x / gridDim.x), int(units * (blockIdx.x + 1) / gridDim.x)};
  }
};

// Words of shared memory with a fixed place.
struct StepWords {
  Barrier full[kMaxStages], empty[kMaxStages];
  Barrier sums_full[kSumSlots], sums_empty[kSumSlots];
  // For each phase of a layer: the lookout says that it is time to look for the data. For the norms
  // before attention and feed-forward: the finishers have found the moments; everybody has passed.
  // Each goes round once a layer, and Pass says why a parity tells layers apart.
  Barrier reported[kPhases], moments_found[2], passed[2];
  UnitRange units[kProducts];   // found once, for dividing takes a warp half a microsecond
  float2 moments[kStepTokens];  // of the stream: mean and reciprocal deviation
  int rows[kStepTokens], positions[kStepTokens];
  int pages[kStepTokens];       // where the tokens' keys go
  int cache_rows[kKnownTiles];  // of the block's first tiles of the cache, in the first layer
  volatile int expired;
};

template <typename T>
struct StepParams {
  CUtensorMap qkv, o, up, down, head, k, v;
  DecodeStepArgs<T> args;
  DecodeStepExchange exchange;
  StepMemory memory;
  int tiles_in_flight;
  uint32_t wait_limit;  // ticks
  EET_STEP_KNOB StepProfile profile = CurrentStepProfile();
};

// The phases that a layer's products end in.
__device__ constexpr Phase kPhaseOf[] = {Phase::kQkv, Phase::kAttentionOut, Phase::kUp,
                                         Phase::kDown};

// Units multiplied together where the input does not fit at once: as many as there are registers
// for their sums. Tokens are multiplied in sets of four.
constexpr int kTokensOfSet = 4;
constexpr EET_HOST_DEVICE int UnitGroup(int batch) { return batch <= kTokensOfSet ? 4 : 2; }

// The part of a product that a block takes: units in the order of its tiles. The input is taken in
// slabs; where there are several, units go in groups, so that each slab is brought once for a
// group.
struct ProductShare : UnitRange {
  int chunks;  // of 64 columns, of the input
  int slab, group;

  __device__ ProductShare(const UnitRange& units, int64_t in, int slab_chunks, int batch)
      : UnitRange(units), chunks(int(in / kChunkColumns)), slab(slab_chunks) {
    group = chunks <= slab ? 1 : UnitGroup(batch);
  }
};

// Whether a norm's reciprocal deviation scales what becomes of the product, so that nobody waits
// for it: that of an RMS norm, but not in float16, whose range it must be to keep. Kernels of their
// own, for one that does either takes more registers than there are: 3 to 5% of small models'
// steps.
template <typename T>
constexpr bool StepScalesOutputs(NormKind norm) {
  return std::is_same_v<T, bfloat16> && norm == NormKind::kRms;
}

// A place in the ring, and the parity of its barriers.
struct RingPlace {
  int stage = 0, parity = 0;

  __device__ __forceinline__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <typename T>
struct StepBlock {
  const StepParams<T>& params;
  char* memory;
  StepWords& words;
  Watch watch;

  __device__ StepBlock(const StepParams<T>& step, char* shared)
      : params(step),
        memory(shared),
        words(*reinterpret_cast<StepWords*>(shared + step.memory.words)),
        watch(step.wait_limit, &words.expired, step.args.status) {}

  __device__ const DecodeStepArgs<T>& args() const { return params.args; }
  __device__ const DecodeStepSizes& sizes() const { return params.args.sizes; }
  __device__ int batch() const { return int(params.args.sizes.batch); }
  __device__ int finishers() const { return batch() <= kFinisherTokens ? 1 : kFinisherWarps; }

  __device__ __forceinline__ void Trace(int layer, Phase phase, StepEvent event) const {
    Note(params.profile.moments, layer, phase, event);
  }

  // The block's share of a product with so many inputs.
  __device__ ProductShare Share(Product product, int64_t in) const {
    return ProductShare(words.units[product], in, params.memory.slab_chunks, batch());
  }

  // Where a layer's phases leave their results.
  __device__ uint32_t* Exchange(int layer, int64_t offset) const {
    return static_cast<uint32_t*>(params.args.exchange) + layer * params.exchange.layer + offset;
  }

  // Counts those who are done with a phase; it begins at all ones.
  __device__ uint32_t* Counter(int layer, Phase phase) const {
    return static_cast<uint32_t*>(params.args.exchange) + params.exchange.counters +
           (layer * kPhases + int(phase)) * DecodeStepExchange::kCounterStride;
  }

  __device__ static int What(int layer, Phase phase) { return layer * kPhases + int(phase); }

  // Where the blocks leave sums over their part of the stream, for a norm: of the squares of each
  // token, and behind them, for layer norm, of the token itself.
  __device__ uint32_t* Statistics(int norm, int which) const {
    return static_cast<uint32_t*>(params.args.exchange) + params.exchange.statistics +
           (2 * norm + which) * batch() * int(DecodeStepExchange::kMaxBlocks);
  }

  // Whether heads are normed before their rotation: then attention does both, else the finishers
  // rotate.
  __device__ bool NormsHeads() const { return params.args.q_norm || params.args.k_norm; }

  // Where scale, or bias, of the norm before a layer's attention (half 0) or feed-forward (half 1)
  // is kept.
  __device__ T* KeptNorm(int half, bool bias) const {
    const int rows = params.args.final_norm.bias ? 2 : 1;
    return reinterpret_cast<T*>(memory + params.memory.norms) +
           (half * rows + bias) * params.args.sizes.hidden;
  }

  // The weights of the norm that is so far down the step.
  __device__ NormWeights<T> NormAt(int norm) const {
    const DecodeStepArgs<T>& args = params.args;
    const int64_t first = norm / 2 * args.sizes.hidden;
    if (norm == 2 * args.sizes.layers) return args.final_norm;
    NormWeights<T> weights = norm % 2 == 0 ? args.attention_norm : args.mlp_norm;
    weights.scale += first;
    if (weights.bias) weights.bias += first;
    return weights;
  }

  __device__ int Window(int layer) const {
    return reinterpret_cast<const int*>(memory + params.memory.windows)[layer];
  }

  // The page where a token's key goes; 0 for tokens that have no row, or a page that does not
  // exist.
  __device__ int PageOf(int token) const {
    const int64_t row = args().rows[token];
    if (row < 0) return 0;
    const int index = args().positions[token] / int(sizes().page_size);
    const int page = args().page_table[row * sizes().max_pages + index];
    return uint32_t(page) < uint32_t(sizes().pages) ? page : 0;
  }

  __device__ const float* Rotary(int token) const {
    return reinterpret_cast<const float*>(memory + params.memory.rotary) +
           token * params.args.sizes.rotary_dim;
  }

  // Waits until the lookout has seen the phase's counter full enough.
  __device__ void AwaitReport(int layer, Phase phase) {
    Barrier& reported = words.reported[int(phase)];
    watch.Until([&] { return reported.TryWait(layer & 1); }, What(layer, phase));
    __syncwarp();
  }

  // The warp has done what it has to do with a norm. By consumers and finishers, in every layer,
  // whether or not the block has a part of the product that follows.
  //
  // A parity tells a barrier's last two rounds apart, no more, so nobody may be a layer away from
  // the lookout:
  //
  //   * It reports a layer's QKV when all have passed the second norm of the layer before, so they
  //     have waited for that layer's QKV to attention's output; and up when all have passed the
  //     layer's first norm, so they have waited for up and down of the layer before.
  //   * All wait for every product's input, so what they wait for next was reported in the layer
  //     before.
  __device__ __forceinline__ void Pass(int norm) {
    __syncwarp();
    words.passed[norm % 2].ArriveAsWarp(LaneId());
  }

  // For consumers: waits until the tile is there.
  __device__ __forceinline__ char* AwaitTile(const RingPlace& place) {
    watch.Until([&] { return words.full[place.stage].TryWait(place.parity); }, kTileWait);
    return memory + place.stage * kTileBytes;
  }

  // The warp is done with the tile.
  __device__ __forceinline__ void ReleaseTile(RingPlace& place, int lane) {
    __syncwarp();
    words.empty[place.stage].ArriveAsWarp(lane);
    place.Advance(params.memory.stages);
  }

  // What the status says of waits inside a block.
  static constexpr int kTileWait = 1 << 20, kStageWait = kTileWait + 1, kSumsWait = kTileWait + 2,
                       kMomentsWait = kTileWait + 3, kPassedWait = kTileWait + 4;
};

// Eight elements of two bytes, from and to a word of 16 bytes.
template <typename T>
__device__ __forceinline__ void Unpack(const uint4& words, float (&values)[8]) {
  const T* elements = reinterpret_cast<const T*>(&words);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = float(elements[i]);
}

// Products of eight elements, each rounded once.
template <typename T>
__device__ __forceinline__ uint4 Times(const uint4& a, const uint4& b) {
  using Pair = std::conditional_t<std::is_same_v<T, bfloat16>, __nv_bfloat162, __half2>;
  uint4 products;
  const Pair *left = reinterpret_cast<const Pair*>(&a), *right = reinterpret_cast<const Pair*>(&b);
#pragma unroll
  for (int i = 0; i < 4; ++i) reinterpret_cast<Pair*>(&products)[i] = __hmul2(left[i], right[i]);
  return products;
}

template <typename T>
__device__ __forceinline__ uint4 Pack(const float (&values)[8]) {
  constexpr std::type_identity<T> kType;
  return {PackPair(values[0], values[1], kType), PackPair(values[2], values[3], kType),
          PackPair(values[4], values[5], kType), PackPair(values[6], values[7], kType)};
}

}  // namespace eet
