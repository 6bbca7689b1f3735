// How a product's input comes from the exchange into shared memory, multiplied by a norm's weights
// on the way.
//
// Each consumer warp brings the chunks of 64 columns that it multiplies, chunks warp, warp + 8, ...
// So the warps need no barrier.
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
  int norm;  // which one, in the order of the step
};

// Eight elements of the stream, normed: once in the code, or it would fill the instruction cache.
template <typename T>
__device__ __noinline__ uint4 NormPiece(uint4 words, uint4 scales, uint4 biases, float2 moments) {
  float values[8], scale[8], bias[8];
  Unpack<T>(words, values);
  Unpack<T>(scales, scale);
  Unpack<T>(biases, bias);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = (values[i] - moments.x) * moments.y * scale[i] + bias[i];
  }
  return Pack<T>(values);
}

// One consumer warp's view of the input in shared memory.
template <typename T>
class InputSlab {
 public:
  __device__ explicit InputSlab(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()), batch_(block.batch()) {}

  // Begins a product's input: everything of the first slab is there afterwards.
  __device__ __forceinline__ void Begin(const StepInput<T>& input, const ProductShare& share) {
    input_ = input;
    stride_ = share.chunks * (kChunkColumns / 2);
    if (input.exchanged) block_.AwaitHint(input.layer, input.phase);
    if (input.normed && !block_.ScalesOutputs()) AwaitMoments();
    if (share.chunks <= share.slab) BringSlab(0, share.chunks);
  }

  // Brings chunks [first, first + count).
  __device__ __forceinline__ void BringSlab(int first, int count) {
    // A load takes eight pieces of four of the warp's chunks.
    const int quads = ((count - warp_ + kConsumers - 1) / kConsumers + 3) / 4;
    __syncwarp();  // all lanes have read what was here
    if (quads * batch_ <= kFewLoads) {
      Bring<kFewLoads>(first, count, quads);
    } else {
      Bring<kManyLoads>(first, count, quads);
    }
    __syncwarp();
  }

 private:
  static constexpr int kFewLoads = 2, kManyLoads = 8;  // under way

  // Where a load comes from and goes to, token by token and quad by quad.
  struct Cursor {
    int token, quad, chunk;  // chunk: of this lane
    const uint32_t* words;
  };

  __device__ __forceinline__ void Advance(Cursor& cursor, int quads) const {
    constexpr int kQuad = 4 * kConsumers;
    cursor.words += kQuad * (kChunkColumns / 2);
    cursor.chunk += kQuad;
    if (++cursor.quad == quads) {
      cursor.words += stride_ - quads * (kQuad * (kChunkColumns / 2));
      cursor.chunk -= quads * kQuad;
      cursor.quad = 0;
      ++cursor.token;
    }
  }

  // Brings this warp's pieces of 16 bytes, one for each lane at a time.
  template <int kLoads>
  __device__ __forceinline__ void Bring(int first, int count, int quads) {
    const int piece = lane_ % 8, chunk = warp_ + kConsumers * (lane_ / 8);
    Cursor from = {0, 0, chunk, input_.words + (first + chunk) * (kChunkColumns / 2) + piece * 4};
    for (int left = quads * batch_; left > 0; left -= kLoads) {
      uint4 loaded[kLoads];
      Cursor next;
      const auto load = [&] {
        bool there = true;
        next = from;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          loaded[i] = {};
          if (i < left && next.chunk < count) loaded[i] = LoadRelaxed4(next.words);
          Advance(next, quads);
        }
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          there = there && (IsThere(loaded[i]) || !input_.exchanged);
        }
        return there;
      };
      block_.watch.Until(load, block_.What(input_.layer, input_.phase));
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (i >= left) break;
        if (input_.normed) loaded[i] = Normed(loaded[i], from.token, first + from.chunk, piece);
        if (from.chunk < count) *Piece(from.token, from.chunk, piece) = loaded[i];
        Advance(from, quads);
      }
      from = next;
    }
  }

  // Where outputs cannot be scaled afterwards: the finishers have found the stream's moments.
  __device__ __forceinline__ void AwaitMoments() {
    const auto found = [&] {
      return block_.words.moments_found[0] > input_.norm &&
             (batch_ <= kFinisherTokens || block_.words.moments_found[1] > input_.norm);
    };
    block_.watch.Until(found, StepBlock<T>::kMomentsWait);
    __syncwarp();
    moments_ = block_.words.moments[min(lane_, batch_ - 1)];
  }

  // All lanes call it with the same token.
  __device__ __forceinline__ uint4 Normed(const uint4& words, int token, int chunk,
                                          int piece) const {
    const int column = min(chunk * kChunkColumns + piece * 8, 2 * stride_ - 8);
    const auto weights = [&](bool bias) {
      return *reinterpret_cast<const uint4*>(block_.Norm(input_.norm % 2, bias) + column);
    };
    if (block_.ScalesOutputs()) return Times<T>(words, weights(false));
    const float2 moments = {__shfl_sync(kFullMask, moments_.x, token),
                            __shfl_sync(kFullMask, moments_.y, token)};
    const bool biased = block_.args().final_norm.bias;
    return NormPiece<T>(words, weights(false), biased ? weights(true) : uint4{}, moments);
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
  int stride_ = 0;       // words of a token
  float2 moments_ = {};  // of token `lane`
};

}  // namespace eet
