// What each warp of a block of the decode step does, phase by phase in the order of a token.
#pragma once

#include "ops/decode_step_attention.cuh"
#include "ops/decode_step_begin.cuh"
#include "ops/decode_step_finish.cuh"
#include "ops/decode_step_product.cuh"

namespace eet {

// What a product reads and how much it gives.
template <typename T>
struct ProductStep {
  StepInput<T> input;
  Product product;
  int64_t out, in;
};

// The product that ends in `phase` of a layer; the head is that of a layer after the last.
template <typename T>
__device__ ProductStep<T> ProductOf(const StepBlock<T>& block, int layer, Phase phase) {
  const DecodeStepArgs<T>& args = block.args();
  const DecodeStepSizes& sizes = args.sizes;
  const DecodeStepExchange& exchange = block.params.exchange;
  const auto from = [&](int source_layer, Phase source, int64_t offset) {
    return StepInput<T>{.words = block.Exchange(source_layer, offset),
                        .exchanged = true,
                        .layer = source_layer,
                        .phase = source,
                        .normed = false,
                        .norm = 2 * layer + (phase == Phase::kUp)};
  };
  StepInput<T> input;
  switch (phase) {
    case Phase::kAttentionOut:
      return {from(layer, Phase::kAttended, exchange.attended), kOutProduct, sizes.hidden,
              sizes.q_size()};
    case Phase::kUp:
      input = from(layer, Phase::kAttentionOut, exchange.attention_out);
      input.normed = true;
      return {input, kUpProduct, sizes.up_size(), sizes.hidden};
    case Phase::kDown:
      return {from(layer, Phase::kUp, exchange.up), kDownProduct, sizes.hidden, sizes.intermediate};
    default:
      input = from(layer - 1, Phase::kDown, exchange.down);
      input.normed = true;
      if (layer == 0) {
        input.words = reinterpret_cast<const uint32_t*>(args.x);
        input.exchanged = false;
      }
      if (layer == sizes.layers) return {input, kHeadProduct, sizes.vocab, sizes.hidden};
      return {input, kQkvProduct, sizes.qkv_size(), sizes.hidden};
  }
}

// The consumers: products and attention.
template <typename T, int kDim, int kSets, bool kScales>
__device__ void Consume(StepBlock<T>& block) {
  const int layers = int(block.sizes().layers);
  RingPlace place;
  StepMultiplier<T, kSets> multiplier(block);
  InputSlab<T, kScales> slab(block);
  Attender<T, kDim> attender(block);
  // One call of each, so that the code stays small.
  for (int layer = 0, i = 0;; i = (i + 1) % kLayerProducts, layer += i == 0) {
    const bool attends = kPhaseOf[i] == Phase::kAttentionOut && block.params.profile.attends;
    if (attends) attender.Run(layer, place);
    const ProductStep<T> step = ProductOf(block, layer, kPhaseOf[i]);
    const ProductShare share = block.Share(step.product, step.in);
    if (!share.empty()) block.Trace(layer, kPhaseOf[i], StepEvent::kBegan);
    slab.Await(step.input);
    if (!share.empty()) {
      slab.Begin(step.input, share);
      block.Trace(layer, kPhaseOf[i], StepEvent::kStaged);
      multiplier.Run(share, slab, place);
      block.Trace(layer, kPhaseOf[i], StepEvent::kMultiplied);
    }
    if (layer == layers) return;
    if (step.input.normed) block.Pass(step.input.norm);
  }
}

// The producer: all tiles of the step in the order in which they are consumed. It never looks at
// activations, so the ring fills while the consumers wait.
template <typename T, int kDim>
class Producer {
 public:
  __device__ explicit Producer(StepBlock<T>& block)
      : block_(block),
        lane_(LaneId()),
        policy_(ReadOncePolicy()),
        deal_(block, CacheTile<T, kDim>::kKeys) {}

  __device__ void Run() {
    const StepParams<T>& params = block_.params;
    const DecodeStepSizes& sizes = params.args.sizes;
    const CUtensorMap* maps[] = {&params.qkv, &params.o, &params.up, &params.down};
    const int layers = int(sizes.layers);
    for (int layer = 0, i = 0; layer < layers || i == 0;
         i = (i + 1) % kLayerProducts, layer += i == 0) {
      if (i == kOutProduct && params.profile.attends) Cache(layer);
      const bool head = layer == layers;
      const ProductStep<T> step = ProductOf(block_, layer, kPhaseOf[i]);
      if (lane_ == 0) {
        Weights(head ? params.head : *maps[i], head ? 0 : layer * int(step.out),
                block_.Share(step.product, step.in));
      }
      __syncwarp();
    }
    // Copies under way must land before the block's memory is given to another.
    if (lane_ == 0) {
      while (under_way_ > 0) AwaitOldest();
    }
  }

 private:
  // Not by the block's watch, which no longer waits when it has expired.
  __device__ __forceinline__ void AwaitOldest() {
    Barrier& full = block_.words.full[oldest_.stage];
    constexpr int kLooks = 1 << 20;  // of at least 20 ns; copies always land
    for (int looks = 0; !full.TryWait(oldest_.parity) && looks < kLooks;) ++looks;
    oldest_.Advance(block_.params.memory.stages);
    --under_way_;
  }

  // One lane loads a tile of so many bytes: copy(shared, barrier).
  template <typename F>
  __device__ __forceinline__ void Order(int bytes, F&& copy) {
    // Never more than the ring holds: a place is waited for before it is given again.
    const StepParams<T>& params = block_.params;
    if (under_way_ == min(params.tiles_in_flight, params.memory.stages)) AwaitOldest();
    Barrier& empty = block_.words.empty[next_.stage];
    if (!empty.TryWait(next_.parity ^ 1)) {
      block_.watch.Until([&] { return empty.TryWait(next_.parity ^ 1); }, StepBlock<T>::kStageWait);
      if (block_.watch.expired()) return;
    }
    Barrier& full = block_.words.full[next_.stage];
    full.ArriveExpecting(bytes);
    copy(block_.memory + next_.stage * kTileBytes, full);
    next_.Advance(block_.params.memory.stages);
    ++under_way_;
  }

  // The share of a kernel whose first row is `first_row` of the map.
  __device__ __forceinline__ void Weights(const CUtensorMap& map, int first_row,
                                          const ProductShare& share) {
    for (int group = share.begin; group < share.end; group += share.group) {
      const int end = min(group + share.group, share.end);
      for (int slab = 0; slab < share.chunks; slab += share.slab) {
        const int slab_end = min(slab + share.slab, share.chunks);
        for (int unit = group; unit < end; ++unit) {
          for (int chunk = slab; chunk < slab_end; chunk += kTileChunks) {
            Order(kTileBytes, [&](char* shared, Barrier& barrier) {
              TmaLoadTile(shared, map, chunk, first_row + unit * kTileRows, barrier, policy_);
            });
          }
        }
      }
    }
  }

  // Keys and values of the block's items, in the order in which Attender::Round takes them.
  __device__ void Cache(int layer) {
    using Tile = CacheTile<T, kDim>;
    const StepParams<T>& params = block_.params;
    if (layer == 0) AwaitBegun();
    deal_.Deal(layer);
    // Mostly the same in all layers: finding them would hold up the stream.
    const bool dealt_before = layer > 0 && block_.Window(layer) == block_.Window(layer - 1);
    const int of_layer = layer * int(params.args.sizes.pages) * PageRows();
    int entry = lane_;  // of this lane's next tile among those that are known
    for (int round = 0; round < deal_.rounds(); ++round) {
      const AttentionItem item = deal_.ItemOfLane(round);
      const auto known = [&] { return dealt_before && entry < kKnownTiles; };
      const auto look = [&](int tile) {
        if (tile >= item.tiles) return 0;
        return known() ? block_.words.cache_rows[entry] : PageOf(item, tile);
      };
      int next = look(0);
      for (int tile = 0; __any_sync(kFullMask, tile < item.tiles); ++tile) {
        int row = next;
        if (!known() && tile < item.tiles) {
          row = CacheRow(item, tile, next);
          if (entry < kKnownTiles) block_.words.cache_rows[entry] = row;
        }
        entry += kConsumerWarps;
        next = look(tile + 1);  // while this one is under way
        for (unsigned warps = __ballot_sync(kFullMask, tile < item.tiles); warps != 0;
             warps &= warps - 1) {
          const int first = of_layer + __shfl_sync(kFullMask, row, __ffs(warps) - 1);
          if (lane_ != 0) continue;
          Order(Tile::kBytes, [&](char* shared, Barrier& barrier) {
            TmaLoadTile(shared, params.k, 0, first, barrier, policy_);
            TmaLoadTile(shared + Tile::kHalf, params.v, 0, first, barrier, policy_);
          });
        }
      }
    }
  }

  __device__ static int FirstKey(const AttentionItem& item, int tile) {
    return item.first_key + tile * CacheTile<T, kDim>::kKeys;
  }

  // The page of an item's tile.
  __device__ int PageOf(const AttentionItem& item, int tile) const {
    const DecodeStepSizes& sizes = block_.sizes();
    return __ldg(block_.args().page_table + block_.words.rows[item.token] * sizes.max_pages +
                 FirstKey(item, tile) / int(sizes.page_size));
  }

  // The cache, seen as rows of one head each: those of a page, and the first of an item's tile.
  __device__ int PageRows() const {
    return int(block_.sizes().kv_heads) * int(block_.sizes().page_size);
  }

  __device__ int CacheRow(const AttentionItem& item, int tile, int page) const {
    const int size = int(block_.sizes().page_size);
    return page * PageRows() + item.kv_head * size + FirstKey(item, tile) % size;
  }

  StepBlock<T>& block_;
  const int lane_;
  const uint64_t policy_;
  RingPlace next_, oldest_;
  int under_way_ = 0;  // tiles
  ItemDeal<T> deal_;
};

// The lookout: one thread looks at one counter at a time, in the order of the phases. It reports a
// phase when all but a few arrivals are there: the data says itself when it is complete. Meanwhile
// the warp brings the weights of the next norm, for which nobody else has time.
template <typename T, int kDim>
class Lookout {
 public:
  __device__ explicit Lookout(StepBlock<T>& block)
      : block_(block), lane_(LaneId()), deal_(block, CacheTile<T, kDim>::kKeys) {}

  __device__ void Run() {
    const DecodeStepArgs<T>& args = block_.args();
    const DecodeStepSizes& sizes = args.sizes;
    const int finishers = block_.finishers();
    for (int layer = 0; layer < sizes.layers; ++layer) {
      deal_.Deal(layer);
      AwaitPassed(1, layer - 1);
      Await(layer, Phase::kQkv, finishers * UnitRange::Blocks(sizes.qkv_size()));
      BringNorm(block_, 2 * layer + 1);
      Await(layer, Phase::kPartials, deal_.items());
      Await(layer, Phase::kAttended, deal_.merging_warps());
      Await(layer, Phase::kAttentionOut, finishers * UnitRange::Blocks(sizes.hidden));
      AwaitPassed(0, layer);
      BringNorm(block_, 2 * layer + 2);
      Await(layer, Phase::kUp, finishers * UnitRange::Blocks(sizes.up_size()));
      Await(layer, Phase::kDown, finishers * UnitRange::Blocks(sizes.hidden));
    }
  }

 private:
  // Until this block's warps have passed a layer's norm: its place may be given to the next, and
  // reports go on. They have long before, for all blocks wait for what comes of it.
  __device__ void AwaitPassed(int half, int layer) {
    Barrier& passed = block_.words.passed[half];
    block_.watch.Until([&] { return passed.TryWait(layer & 1); }, StepBlock<T>::kPassedWait);
    __syncwarp();
  }

  __device__ void Await(int layer, Phase phase, int arrivals) {
    if (lane_ == 0) {
      const int enough = arrivals - arrivals / block_.params.profile.early_part;
      const uint32_t* counter = block_.Counter(layer, phase);
      block_.watch.Until([&] { return int(LoadRelaxed(counter) + 1) >= enough; },
                         block_.What(layer, phase));
      block_.words.reported[int(phase)].Arrive();
    } else if (kAllLanesArrive) {
      block_.words.reported[int(phase)].Arrive();
    }
    block_.Trace(layer, phase, StepEvent::kReported);
    __syncwarp();
  }

  StepBlock<T>& block_;
  const int lane_;
  ItemDeal<T> deal_;
};

}  // namespace eet
