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

// One consumer warp's view of the input in shared memory. kScales: norms scale outputs
// (StepScalesOutputs).
template <typename T, bool kScales>
class InputSlab {
 public:
  __device__ explicit InputSlab(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()), batch_(block.batch()) {}

  // Waits until it is time to look for a product's input. By all warps, also of blocks that have no
  // part of the product (StepBlock::Pass).
  __device__ __forceinline__ void Await(const StepInput<T>& input) {
    if (input.exchanged) block_.AwaitReport(input.layer, input.phase);
  }

  // Begins a product's input: all of it is there afterwards, if it fits at once.
  __device__ __forceinline__ void Begin(const StepInput<T>& input, const ProductShare& share) {
    input_ = input;
    stride_ = share.chunks * (kChunkColumns / 2);
    if (share.group == 1) BringSlab(0, share.chunks);
  }

  // Brings chunks [first, first + count). A load takes eight pieces of four of the warp's chunks, a
  // quad. One token's quads are under way together, or those of several tokens: the code that runs
  // is as long as what there is to load, for the warp issues an instruction in about six cycles.
  __device__ __forceinline__ void BringSlab(int first, int count) {
    if (!block_.params.profile.stages) return;
    const int quads = ((count - warp_ + kConsumerWarps - 1) / kConsumerWarps + 3) / 4;
    const Slab slab = {first, count, quads};
    __syncwarp();  // all lanes have read what was here
    if (quads > 4) {
      Bring<8, 1>(slab);
    } else if (batch_ == 1) {
      if (quads > 2) {
        Bring<4, 1>(slab);
      } else if (quads == 2) {
        Bring<2, 1>(slab);
      } else {
        Bring<1, 1>(slab);
      }
    } else if (quads > 2) {
      Bring<4, 2>(slab);
    } else if (quads == 2) {
      Bring<2, 4>(slab);
    } else {
      Bring<1, 8>(slab);
    }
    if (input_.normed) {
      if (!kScales) AwaitMoments(input_.norm);
      Norm(slab);
    }
    __syncwarp();
  }

 private:
  static constexpr int kQuad = 4 * kConsumerWarps;  // chunks from a load to the next

  struct Slab {
    int first, count, quads;
  };

  template <int kQuads, int kTokens>
  __device__ __forceinline__ void Bring(const Slab& slab) {
    for (int token = 0; token < batch_; token += kTokens) {
      for (int quad = 0; quad < slab.quads; quad += kQuads) {
        const int chunk = FirstChunk() + quad * kQuad;
        const uint32_t* words = input_.words + token * stride_ +
                                (slab.first + chunk) * (kChunkColumns / 2) + lane_ % 8 * 4;
        uint4 loaded[kTokens][kQuads];
        const auto load = [&] {
          bool there = true;
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
#pragma unroll
            for (int i = 0; i < kQuads; ++i) {
              const bool exists = chunk + i * kQuad < slab.count && token + t < batch_;
              loaded[t][i] = {};
              if (exists) {
                loaded[t][i] = LoadRelaxed4(words + t * stride_ + i * kQuad * (kChunkColumns / 2));
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kTokens * kQuads; ++i) {
            there = there && IsThere(loaded[i / kQuads][i % kQuads]);
          }
          return there || !input_.exchanged;
        };
        block_.watch.Until(load, block_.What(input_.layer, input_.phase));
        __syncwarp();
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
#pragma unroll
          for (int i = 0; i < kQuads; ++i) {
            const int at = chunk + i * kQuad;
            if (at < slab.count && token + t < batch_) *Piece(token + t, at) = loaded[t][i];
          }
        }
      }
    }
  }

  // Norms the pieces that this lane has brought.
  __device__ __forceinline__ void Norm(const Slab& slab) const {
    const NormWeights<T> weights = Weights();
    for (int chunk = FirstChunk(); chunk < slab.count; chunk += kQuad) {
      const int column = (slab.first + chunk) * kChunkColumns + lane_ % 8 * 8;
      const auto piece = [&](const T* from) {
        return *reinterpret_cast<const uint4*>(from + column);
      };
      const NormPiece of_columns = {piece(weights.scale),
                                    weights.bias ? piece(weights.bias) : uint4{}};
#pragma unroll 1
      for (int token = 0; token < batch_; ++token) {
        uint4* words = Piece(token, chunk);
        *words = Normed(*words, token, of_columns);
      }
    }
  }

  // A norm's weights of eight columns.
  struct NormPiece {
    uint4 scale, bias;
  };

  // The norm's, where they are kept or where they come from.
  __device__ __forceinline__ NormWeights<T> Weights() const {
    NormWeights<T> weights = block_.args().final_norm;
    if (!block_.params.memory.keeps_norms) return block_.NormAt(input_.norm);
    weights.scale = block_.KeptNorm(input_.norm % 2, false);
    if (weights.bias) weights.bias = block_.KeptNorm(input_.norm % 2, true);
    return weights;
  }

  // Where outputs cannot be scaled afterwards: the finishers have found the stream's moments.
  __device__ __forceinline__ void AwaitMoments(int norm) {
    Barrier& found = block_.words.moments_found[norm % 2];
    block_.watch.Until([&] { return found.TryWait(norm / 2 & 1); }, StepBlock<T>::kMomentsWait);
    __syncwarp();
  }

  __device__ __forceinline__ uint4 Normed(const uint4& words, int token,
                                          const NormPiece& weights) const {
    if constexpr (kScales) return Times<T>(words, weights.scale);
    const auto [mean, inverse] = block_.words.moments[token];
    float values[8], scale[8], bias[8];
    Unpack<T>(words, values);
    Unpack<T>(weights.scale, scale);
    Unpack<T>(weights.bias, bias);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = (values[i] - mean) * inverse * scale[i] + bias[i];
    return Pack<T>(values);
  }

  // This lane's first chunk of a slab.
  __device__ int FirstChunk() const { return warp_ + kConsumerWarps * (lane_ / 8); }

  // This lane's 16 bytes of a token's chunk. Those of eight tokens lie in eight groups of banks.
  __device__ uint4* Piece(int token, int chunk) const {
    const int line = chunk * batch_ + token;
    return reinterpret_cast<uint4*>(block_.memory + block_.params.memory.input) + line * 8 +
           (lane_ % 8 ^ token % 8);
  }

  StepBlock<T>& block_;
  const int warp_, lane_, batch_;
  StepInput<T> input_ = {};
  int stride_ = 0;  // words of a token
};

}  // namespace eet
