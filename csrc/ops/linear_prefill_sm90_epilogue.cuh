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
#include "ops/linear_prefill_sm90_multiply.cuh"

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

// The first of a thread's two rows among the group's.
__device__ __forceinline__ int RowOfLane() {
  return threadIdx.x % kGroupThreads / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
}

// The first of a thread's two outputs among eight.
__device__ __forceinline__ int PairOfLane() { return 2 * QuadLane(); }

// Adds a bias to the outputs of a tile, whose first of `outs` is `out`. All loads are under way
// together: one after the other they took longer than many a product.
template <class Shape>
__device__ __forceinline__ void AddBias(const typename Shape::T* bias, int out, int64_t outs,
                                        LinearSums<Shape>& sums) {
  using T = typename Shape::T;
  if (!bias) return;
  constexpr int kLoads = Shape::kOuts / 8;
  const bool in_pairs = outs % 2 == 0 && reinterpret_cast<uintptr_t>(bias) % sizeof(uint32_t) == 0;
  uint32_t loaded[kLoads];
  const auto load_all = [&](const auto& load) {
#pragma unroll
    for (int n = 0; n < kLoads; ++n) loaded[n] = load(out + 8 * n + PairOfLane());
  };
  if (in_pairs) {
    load_all([&](int at) -> uint32_t {
      return at < outs ? *reinterpret_cast<const uint32_t*>(bias + at) : 0;
    });
  } else {
    load_all([&](int at) {
      const T zero = T(0.0f);
      return std::bit_cast<uint32_t>(
          ValuePair<T>{at < outs ? bias[at] : zero, at + 1 < outs ? bias[at + 1] : zero});
    });
  }
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const float2 pair = std::bit_cast<ValuePair<T>>(loaded[n]).Floats();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums[4 * n + 2 * i] += pair.x;
      sums[4 * n + 2 * i + 1] += pair.y;
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

// Calls work(part, its sums) for the parts of a tile, of so many sums each. A loop over parts that
// move to the same registers is a quarter of the code, but took 4 % longer for 2048 columns.
template <class Shape, int kPartSums, typename F>
__device__ __forceinline__ void InParts(LinearSums<Shape>& sums, const F& work) {
#pragma unroll
  for (int part = 0; part < Shape::kOuts / 2 / kPartSums; ++part) {
    work(part, reinterpret_cast<float (&)[kPartSums]>(sums[part * kPartSums]));
  }
}

// Replaces each pair of sums by change(activation, first, second).
template <int kCount, typename F>
__device__ __forceinline__ void ForEachPair(Activation activation, float (&sums)[kCount],
                                            const F& change) {
  WithActivation(activation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) change(constant.value, sums[i], sums[i + 1]);
  });
}

template <int kCount>
__device__ __forceinline__ void ActivateSums(Activation activation, float (&sums)[kCount]) {
  ForEachPair(activation, sums, [](Activation constant, float& first, float& second) {
    first = Activate(constant, first);
    second = Activate(constant, second);
  });
}

// Results in pairs: word [2 * n + i] has those of block n of eight outputs, in row i.
template <typename T, int kCount>
__device__ __forceinline__ void Pack(const float (&sums)[kCount], uint32_t (&words)[kCount / 2]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    words[i] = PackPair(sums[2 * i], sums[2 * i + 1], std::type_identity<T>{});
  }
}

// Adds to the sums of row i what `from` has of that row, if that is `valid`. A lane loads one of
// four blocks; all loads are under way together.
template <typename T, int kCount>
__device__ __forceinline__ void AddBlocks(const T* from, int64_t outs, int i, bool valid,
                                          float (&sums)[kCount]) {
  constexpr int kLoads = kCount / 16;
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
      const float2 pair = std::bit_cast<ValuePair<T>>(words[j]).Floats();
      sums[4 * (4 * n + j) + 2 * i] += pair.x;
      sums[4 * (4 * n + j) + 2 * i + 1] += pair.y;
    }
  }
}

// Where results of a 16-bit epilogue lie, and their columns.
template <typename T>
struct LinearResults {
  T* y;
  int64_t cols;
};

// y = activation(sum + bias) + residual, as StoreOutput. What nothing is applied to, a sum begins
// with: bias, and a residual where there is no activation.
template <class Shape>
class LinearOutputs {
 public:
  using T = typename Shape::T;
  using Args = LinearArgs<T>;

  static LinearResults<T> Results(const Args& args) { return {args.y, args.out}; }

  __device__ LinearOutputs(const Args& args, int row, int out)
      : args_(args), first_row_(row), row_(row + RowOfLane()), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    if (args_.residual && args_.activation == Activation::kNone) AddResidual(out_, sums);
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums, LinearStore<Shape>& store) const {
    InParts<Shape, kPartSums>(sums, [&](int part, float (&some)[kPartSums]) {
      const int out = out_ + part * Shape::kStoreCols;
      ActivateSums(args_.activation, some);
      if (args_.residual && args_.activation != Activation::kNone) AddResidual(out, some);
      Words words;
      Pack<T>(some, words);
      store.StorePairs(words, first_row_, out);
    });
  }

 private:
  static constexpr int kPartSums = Shape::kStoreCols / 2;
  using Words = uint32_t[kPartSums / 2];

  __device__ bool HasRow(int i) const { return row_ + 8 * i < args_.rows; }

  // To the sums of outputs from `out` on.
  template <int kCount>
  __device__ __forceinline__ void AddResidual(int out, float (&sums)[kCount]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const T* from = args_.residual + int64_t{row_ + 8 * i} * args_.out + out;
      AddBlocks(from, args_.out - out, i, HasRow(i), sums);
    }
  }

  const Args& args_;
  const int first_row_, row_, out_;
};

// y = activation(gate + bias) * (up + bias), as StoreGated.
template <class Shape>
class LinearGates {
 public:
  using T = typename Shape::T;
  using Args = LinearArgs<T>;

  static LinearResults<T> Results(const Args& args) { return {args.y, args.out / 2}; }

  __device__ LinearGates(const Args& args, int row, int out) : args_(args), row_(row), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums, LinearStore<Shape>& store) const {
    InParts<Shape, kPartSums>(sums, [&](int part, Sums& some) {
      ForEachPair(args_.activation, some, [](Activation activation, float& gate, float up) {
        gate = Activate(activation, gate) * up;
      });
      Pieces pieces;
      PackGates(some, pieces);
      store.StorePieces(pieces, row_, out_ / 2 + part * Shape::kStoreCols);
    });
  }

 private:
  static constexpr int kPartSums = Shape::kStoreCols;
  using Sums = float[kPartSums];

  // [j][i]: of each 32 results j, eight neighbours of this lane in row i.
  using Pieces = uint4[kPartSums / 32][2];

  // Of eight blocks of eight outputs, lane l of four has results 4 * n + l. After the exchange of
  // pairs of blocks it has two blocks' results of all four lanes.
  __device__ __forceinline__ static void PackGates(const Sums& results, Pieces& pieces) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int first = 0; first < kPartSums; first += 32) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = first + 8 * j + 2 * i;
          words[j] = PackPair(results[at], results[at + 4], std::type_identity<T>{});
        }
        TransposeFour(words);
        pieces[first / 32][i] = {
            __byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
            __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632)};
      }
    }
  }

  const Args& args_;
  const int row_, out_;
};

}  // namespace eet
