// How a product's input comes from the exchange into shared memory, normed on the way.
//
// Each consumer warp brings the chunks of 64 columns that it multiplies, chunks warp, warp + 8, ...
// So the warps need no barrier, except for the sums of a norm.
#pragma once

#include "ops/decode_step_block.cuh"

namespace eet {

template <typename T>
struct StepInput {
  const uint32_t* words;  // [batch, columns / 2]
  bool exchanged;         // by the blocks of this step: words may not be there yet
  int layer;              // the phase it is the result of
  Phase phase;
  bool normed;
  int norm_layer, norm_half;  // whose norm, and the stream's moments
};

constexpr int kConsumersBarrier = 1;  // of the hardware's named barriers

__device__ __forceinline__ void SyncConsumers() {
  asm volatile("bar.sync %0, %1;" ::"n"(kConsumersBarrier), "n"(kConsumers * kWarpSize) : "memory");
}

// One consumer warp's view of the input in shared memory. kBatch: at least the batch.
template <typename T, int kBatch>
class InputSlab {
 public:
  __device__ explicit InputSlab(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()), batch_(block.batch()) {}

  // Begins a product's input: everything of the first slab is there afterwards.
  __device__ __forceinline__ void Begin(const StepInput<T>& input, const ProductShare& share) {
    input_ = input;
    columns_ = share.chunks * kChunkColumns;
    if (input.exchanged) block_.AwaitHint(input.layer, input.phase);
    if (share.chunks <= share.slab) {
      Bring(0, share.chunks, input.normed);
    } else if (input.normed) {
      block_.watch.Until([&] { return LoadSums(); }, block_.What(input_.layer, input_.phase));
      FindMoments();
    }
  }

  // Brings chunks [first, first + count) of an input that does not fit at once.
  __device__ __forceinline__ void BringSlab(int first, int count) { Bring(first, count, false); }

 private:
  static constexpr int kLoads = 8;  // under way

  // Brings this warp's pieces of 16 bytes of some chunks, one for each lane at a time, and norms
  // them; together with the first ones, on request, the sums from which the moments follow.
  __device__ __forceinline__ void Bring(int first, int count, bool with_sums) {
    // A load takes eight pieces of four of the warp's chunks.
    const int quarter = lane_ / 8, piece = lane_ % 8;
    const int quads = ((count - warp_ + kConsumers - 1) / kConsumers + 3) / 4;
    const int total = quads * batch_, stride = columns_ / 2;
    const uint32_t* words = input_.words + first * (kChunkColumns / 2) + piece * 4;
    const auto chunk_of = [&](int quad) { return warp_ + kConsumers * (4 * quad + quarter); };
    int token = 0, quad = 0;
    __syncwarp();  // all lanes have read what was here
#pragma unroll 1
    for (int start = 0; start < total || (with_sums && start == 0); start += kLoads) {
      uint4 loaded[kLoads];
      const auto load = [&] {
        bool there = true;
        int t = token, q = quad;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          loaded[i] = {};
          if (start + i < total && chunk_of(q) < count) {
            loaded[i] = LoadRelaxed4(words + t * stride + chunk_of(q) * (kChunkColumns / 2));
          }
          if (++q == quads) q = 0, ++t;
        }
        if (with_sums && start == 0) there = LoadSums();
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          there = there && (IsThere(loaded[i]) || !input_.exchanged);
        }
        return there;
      };
      block_.watch.Until(load, block_.What(input_.layer, input_.phase));
      __syncwarp();
      if (with_sums && start == 0) FindMoments();
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (start + i >= total) break;
        const int chunk = min(chunk_of(quad), count - 1);
        if (input_.normed) loaded[i] = Normed(loaded[i], token, first + chunk, piece);
        if (chunk_of(quad) < count) *Piece(token, chunk, piece) = loaded[i];
        if (++quad == quads) quad = 0, ++token;
      }
    }
    __syncwarp();
  }

  // The sums of the blocks, of this warp's tokens: warp and warp + 8.
  static constexpr int kTokens = (kBatch + kConsumers - 1) / kConsumers;
  static constexpr int kLoadsOfSums = int(DecodeStepExchange::kMaxBlocks) / kWarpSize;

  __device__ __forceinline__ bool LoadSums() {
    bool there = true;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int token = warp_ + i * kConsumers;
      const uint32_t* words = block_.Statistics(input_.norm_layer, input_.norm_half, token) + lane_;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const bool needed = token < batch_ && (which == 1 || IsLayerNorm());
#pragma unroll
        for (int n = 0; n < kLoadsOfSums; ++n) {
          const bool exists = needed && lane_ + n * kWarpSize < int(gridDim.x);
          sums_[i][which][n] =
              exists ? LoadRelaxed(words + which * DecodeStepExchange::kMaxBlocks + n * kWarpSize)
                     : 0;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens * 2 * kLoadsOfSums; ++i)
      there = there && IsThere((&sums_[0][0][0])[i]);
    return there;
  }

  // Adds the blocks' sums in the order of the blocks; lane t keeps the moments of token t.
  __device__ __forceinline__ void FindMoments() {
    const float per_column = 1.0f / float(columns_);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int token = warp_ + i * kConsumers;
      if (token >= batch_) break;
      const float mean = IsLayerNorm() ? AddSums(sums_[i][0]) * per_column : 0.0f;
      const float square = AddSums(sums_[i][1]) * per_column;
      const float variance = fmaxf(square - mean * mean, 0.0f);
      if (lane_ == 0) {
        block_.words.moments[token] = {mean, rsqrtf(variance + block_.args().final_norm.eps)};
      }
    }
    SyncConsumers();
    const float2 moments = block_.words.moments[min(lane_, batch_ - 1)];
    mean_ = moments.x;
    inverse_ = moments.y;
  }

  __device__ static float AddSums(const uint32_t (&sums)[kLoadsOfSums]) {
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < kLoadsOfSums; ++n) total += __uint_as_float(sums[n]);
    return WarpReduce<Sum>(total);
  }

  __device__ bool IsLayerNorm() const { return block_.args().final_norm.kind == NormKind::kLayer; }

  // All lanes call it with the same token.
  __device__ uint4 Normed(const uint4& words, int token, int chunk, int piece) const {
    const float inverse = __shfl_sync(kFullMask, inverse_, token);
    const auto weights = [&](bool bias) {
      return *reinterpret_cast<const uint4*>(block_.Norm(input_.norm_half, bias) +
                                             chunk * kChunkColumns + piece * 8);
    };
    float values[8], scale[8];
    Unpack<T>(words, values);
    Unpack<T>(weights(false), scale);
    if (!IsLayerNorm()) {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] *= inverse * scale[i];
      return Pack<T>(values);
    }
    const float mean = __shfl_sync(kFullMask, mean_, token);
    float bias[8];
    Unpack<T>(weights(true), bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = (values[i] - mean) * inverse * scale[i] + bias[i];
    return Pack<T>(values);
  }

  // Pieces of eight tokens lie in eight groups of banks.
  __device__ uint4* Piece(int token, int chunk, int piece) const {
    const int line = chunk * batch_ + token;
    return reinterpret_cast<uint4*>(block_.memory + block_.params.memory.input) + line * 8 +
           (piece ^ token % 8);
  }

  StepBlock<T>& block_;
  const int warp_, lane_, batch_;
  StepInput<T> input_ = {};
  int columns_ = 0;
  uint32_t sums_[kTokens][2][kLoadsOfSums];
  float mean_ = 0.0f, inverse_ = 0.0f;  // of token `lane`
};

}  // namespace eet
