// How linear on Hopper finishes a tile, from registers: outputs one by one, or gated.
//
// A thread has of each eight outputs the pair of its lane, in two rows (core/wgmma.cuh): a gate and
// its neighbour. Four lanes exchange words before they store, so that each has eight neighbours.
#pragma once

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
  constexpr int kBlocks = Shape::kOuts / 8;
  ValuePair<typename Shape::T> pairs[kBlocks] = {};
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    if (out + 8 * n < outs) pairs[n] = LoadPair(bias + out + PairOfLane() + 8 * n);
  }
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    const float2 pair = pairs[n].Floats();
    sums[4 * n] += pair.x;
    sums[4 * n + 1] += pair.y;
    sums[4 * n + 2] += pair.x;
    sums[4 * n + 3] += pair.y;
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

// y = activation(sum + bias) + residual, as StoreOutput.
template <class Shape>
class LinearOutputs {
 public:
  using T = typename Shape::T;
  using Args = LinearArgs<T>;

  __device__ LinearOutputs(const Args& args, int row, int out)
      : args_(args), row_(row), out_(out) {}

  __device__ __forceinline__ void operator()(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
    ForEachPair<Shape>(args_.activation, out_, args_.out, sums,
                       [](Activation activation, float& first, float& second) {
                         first = Activate(activation, first);
                         second = Activate(activation, second);
                       });
    if (args_.residual) AddResidual(sums);
    LinearWords<Shape> words;
    Pack<Shape>(sums, words);
    Store(words);
  }

 private:
  __device__ __forceinline__ void AddResidual(LinearSums<Shape>& sums) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t at = int64_t{row_ + 8 * i} * args_.out + out_ + PairOfLane();
#pragma unroll
      for (int n = 0; n < Shape::kOuts / 8; ++n) {
        if (row_ + 8 * i >= args_.rows || out_ + 8 * n >= args_.out) continue;
        const float2 pair = LoadPair(args_.residual + at + 8 * n).Floats();
        sums[4 * n + 2 * i] += pair.x;
        sums[4 * n + 2 * i + 1] += pair.y;
      }
    }
  }

  __device__ __forceinline__ void Store(const LinearWords<Shape>& words) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* y = args_.y + int64_t{row_ + 8 * i} * args_.out + out_;
#pragma unroll
      for (int n = 0; n < Shape::kOuts / 8; n += 4) {
        const bool valid = row_ + 8 * i < args_.rows && out_ + 8 * (n + QuadLane()) < args_.out;
        StoreBlocks<Shape>(words, n, i, y + 8 * n, valid);
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

  __device__ __forceinline__ void operator()(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
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
