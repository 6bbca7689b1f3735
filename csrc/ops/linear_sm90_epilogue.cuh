// How linear on Hopper finishes a tile, from registers: outputs one by one, or gated.
//
// A thread has of each eight outputs the pair of its lane, in two rows (core/wgmma.cuh): a gate and
// its neighbour. Four lanes exchange words before they store, so that each has eight neighbours.
#pragma once

#include <bit>
#include <type_traits>

#include "core/lanes.cuh"
#include "core/mma.cuh"
#include "ops/linear.h"
#include "ops/linear_sm90_multiply.cuh"

namespace eet {

// Two neighbours, the first of them even.
template <typename T>
struct alignas(2 * sizeof(T)) ValuePair {
  T first, second;

  __device__ __forceinline__ float2 Floats() const { return {float(first), float(second)}; }
};

template <typename T>
__device__ __forceinline__ ValuePair<T> LoadPair(const T* pointer) {
  return *reinterpret_cast<const ValuePair<T>*>(pointer);
}

// Among the four lanes that share a row.
__device__ __forceinline__ int QuadLane() { return threadIdx.x % 4; }

// The first of a thread's two outputs among eight.
__device__ __forceinline__ int PairOfLane() { return 2 * QuadLane(); }

// `out`: the tile's first of `outs` outputs.
template <class Shape>
__device__ __forceinline__ void AddBias(const typename Shape::T* bias, int out, int64_t outs,
                                        LinearSums<Shape>& sums) {
  if (!bias) return;
#pragma unroll
  for (int n = 0; n < Shape::kOuts / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = out + 8 * n + PairOfLane() + j;
      const float value = at < outs ? float(bias[at]) : 0.0f;
      sums[4 * n + j] += value;
      sums[4 * n + 2 + j] += value;
    }
  }
}

// Calls f with the activation as a constant: code for it alone, over all sums.
template <typename F>
__device__ __forceinline__ void WithActivation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone:
      return f(std::integral_constant<Activation, Activation::kNone>{});
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return f(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kQuickGelu:
      return f(std::integral_constant<Activation, Activation::kQuickGelu>{});
  }
}

// Replaces each pair of sums by change(activation, first, second). A branch between some of them
// keeps the compiler from having all of them half done, in more registers than there are.
template <class Shape, typename F>
__device__ __forceinline__ void ForEachPair(Activation activation, int out, int64_t outs,
                                            LinearSums<Shape>& sums, const F& change) {
  WithActivation(activation, [&](auto constant) {
#pragma unroll
    for (int n = 0; n < Shape::kOuts / 8; n += 4) {
      if (out + 8 * n >= outs) continue;
#pragma unroll
      for (int i = 4 * n; i < 4 * (n + 4); i += 2) change(constant.value, sums[i], sums[i + 1]);
    }
  });
}

template <class Shape>
__device__ __forceinline__ void ActivateSums(Activation activation, int out, int64_t outs,
                                             LinearSums<Shape>& sums) {
  ForEachPair<Shape>(activation, out, outs, sums,
                     [](Activation constant, float& first, float& second) {
                       first = Activate(constant, first);
                       second = Activate(constant, second);
                     });
}

// A tile's results in pairs: word [2 * n + i] has those of block n of eight outputs, in row i.
template <class Shape>
using LinearWords = uint32_t[Shape::kOuts / 4];

template <class Shape>
__device__ __forceinline__ void Pack(const LinearSums<Shape>& sums, LinearWords<Shape>& words) {
#pragma unroll
  for (int i = 0; i < Shape::kOuts / 4; ++i) {
    words[i] = PackPair(sums[2 * i], sums[2 * i + 1], std::type_identity<typename Shape::T>{});
  }
}

// Stores four blocks from block n on of row i. A lane stores one of them, if that is `valid`.
template <class Shape>
__device__ __forceinline__ void StoreBlocks(const LinearWords<Shape>& words, int n, int i,
                                            typename Shape::T* to, bool valid) {
  uint32_t row[4] = {words[2 * n + i], words[2 * n + 2 + i], words[2 * n + 4 + i],
                     words[2 * n + 6 + i]};
  TransposeFour(row);
  if (valid) reinterpret_cast<uint4*>(to)[QuadLane()] = {row[0], row[1], row[2], row[3]};
}

// Adds to the sums of row i what `from` has of that row, if that is `valid`. A lane loads one of
// four blocks; all loads are under way together.
template <class Shape>
__device__ __forceinline__ void AddBlocks(const typename Shape::T* from, int64_t outs, int i,
                                          bool valid, LinearSums<Shape>& sums) {
  constexpr int kLoads = Shape::kOuts / 32;
  uint4 loaded[kLoads] = {};
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const int block = 4 * n + QuadLane();
    if (valid && 8 * block < outs) loaded[n] = reinterpret_cast<const uint4*>(from)[block];
  }
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    uint32_t words[4] = {loaded[n].x, loaded[n].y, loaded[n].z, loaded[n].w};
    TransposeFour(words);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = std::bit_cast<ValuePair<typename Shape::T>>(words[j]).Floats();
      sums[4 * (4 * n + j) + 2 * i] += pair.x;
      sums[4 * (4 * n + j) + 2 * i + 1] += pair.y;
    }
  }
}

// y = activation(sum + bias) + residual, as StoreOutput. What nothing is applied to, a sum begins
// with: bias, and a residual where there is no activation.
template <class Shape>
class LinearOutputs {
 public:
  using T = typename Shape::T;
  using Args = LinearArgs<T>;

  __device__ LinearOutputs(const Args& args, int row, int out)
      : args_(args), row_(row), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    if (args_.residual && args_.activation == Activation::kNone) AddResidual(sums);
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums) const {
    ActivateSums<Shape>(args_.activation, out_, args_.out, sums);
    if (args_.residual && args_.activation != Activation::kNone) AddResidual(sums);
    LinearWords<Shape> words;
    Pack<Shape>(sums, words);
    Store(words);
  }

 private:
  __device__ bool HasRow(int i) const { return row_ + 8 * i < args_.rows; }
  __device__ int64_t At(int i) const { return int64_t{row_ + 8 * i} * args_.out + out_; }

  __device__ __forceinline__ void AddResidual(LinearSums<Shape>& sums) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      AddBlocks<Shape>(args_.residual + At(i), args_.out - out_, i, HasRow(i), sums);
    }
  }

  __device__ __forceinline__ void Store(const LinearWords<Shape>& words) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < Shape::kOuts / 8; n += 4) {
        const bool valid = HasRow(i) && out_ + 8 * (n + QuadLane()) < args_.out;
        StoreBlocks<Shape>(words, n, i, args_.y + At(i) + 8 * n, valid);
      }
    }
  }

  const Args& args_;
  const int row_, out_;
};

// The same with results in float32, of any number: rows need not be aligned.
template <class Shape>
class LinearFloats {
 public:
  using Args = LinearArgs<typename Shape::T, float>;

  __device__ LinearFloats(const Args& args, int row, int out) : args_(args), row_(row), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums) const {
    ActivateSums<Shape>(args_.activation, out_, args_.out, sums);
    const bool in_pairs = args_.out % 2 == 0 && !args_.residual;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row_ + 8 * i >= args_.rows) break;
      if (in_pairs) {
        StorePairs(sums, i);
      } else {
        StoreOneByOne(sums, i);
      }
    }
  }

 private:
  __device__ int64_t At(int i) const { return int64_t{row_ + 8 * i} * args_.out; }

  __device__ __forceinline__ void StorePairs(const LinearSums<Shape>& sums, int i) const {
#pragma unroll
    for (int n = 0; n < Shape::kOuts / 8; ++n) {
      const int col = out_ + 8 * n + PairOfLane(), at = 4 * n + 2 * i;
      if (col >= args_.out) continue;
      *reinterpret_cast<float2*>(args_.y + At(i) + col) = {sums[at], sums[at + 1]};
    }
  }

  __device__ __forceinline__ void StoreOneByOne(const LinearSums<Shape>& sums, int i) const {
#pragma unroll
    for (int n = 0; n < Shape::kOuts / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int col = out_ + 8 * n + PairOfLane() + j;
        if (col >= args_.out) continue;
        const float residual = args_.residual ? args_.residual[At(i) + col] : 0.0f;
        args_.y[At(i) + col] = sums[4 * n + 2 * i + j] + residual;
      }
    }
  }

  const Args& args_;
  const int row_, out_;
};

// y = activation(gate + bias) * (up + bias), as StoreGated.
template <class Shape>
class LinearGates {
 public:
  using T = typename Shape::T;
  using Args = LinearArgs<T>;

  __device__ LinearGates(const Args& args, int row, int out) : args_(args), row_(row), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums) const {
    ForEachPair<Shape>(args_.activation, out_, args_.out, sums,
                       [](Activation activation, float& gate, float up) {
                         gate = Activate(activation, gate) * up;
                       });
    Store(sums);
  }

 private:
  // Of eight blocks of eight outputs, lane l of four has results 4 * n + l. After the exchange of
  // pairs of blocks it has two blocks' results of all four lanes.
  __device__ __forceinline__ void Store(const LinearSums<Shape>& results) const {
    const int64_t cols = args_.out / 2;
    const int first = out_ / 2 + 8 * QuadLane();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row_ + 8 * i;
      T* y = args_.y + row * cols + first;
#pragma unroll
      for (int n = 0; n < Shape::kOuts / 8; n += 8) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = 4 * (n + 2 * j) + 2 * i;
          words[j] = PackPair(results[at], results[at + 4], std::type_identity<T>{});
        }
        TransposeFour(words);
        if (row < args_.rows && first + 4 * n < cols) {
          *reinterpret_cast<uint4*>(y + 4 * n) = {
              __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
              __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632)};
        }
      }
    }
  }

  const Args& args_;
  const int row_, out_;
};

}  // namespace eet
