// A row of a tensor that the threads of a block or a cluster share, for kernels that need sums over
// all of it before they write any of it.
//
//   RegisterRow   its elements stay in registers, so that memory is read once: up to kRegisterPacks
//                 vectors in a block, eight times as many in a cluster.
//   MemoryRow     any size and alignment; each sum reads it again, from the caches if it fits.
#pragma once

#include <algorithm>

#include "core/cluster.cuh"
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"

namespace eet {

constexpr int kRowThreads = 512;
constexpr int kRowPacks = 4;  // vectors of a thread, at most
constexpr int64_t kRegisterPacks = kRowThreads * kRowPacks;

// How many threads share a row, which of them this one is, and which row.
template <bool kClustered>
struct RowTeam {
  static __device__ int Rank() {
    return (kClustered ? Cluster::Rank() * blockDim.x : 0) + threadIdx.x;
  }
  static __device__ int Size() { return (kClustered ? Cluster::kSize : 1) * blockDim.x; }
  static __device__ int64_t Row() { return kClustered ? Cluster::Item() : blockIdx.x; }

  // Over all threads, in order. `exchange` is in shared memory and of this sum alone.
  static __device__ float Sum(float value, float& exchange) {
    value = BlockReduce<eet::Sum>(value);
    if constexpr (kClustered) {
      if (threadIdx.x == 0) exchange = value;
      Cluster::Sync();
      value = 0;
#pragma unroll
      for (int rank = 0; rank < Cluster::kSize; ++rank) value += Cluster::Shared(exchange, rank);
    }
    return value;
  }

  // Before a thread ends: other blocks may still read this one's shared memory.
  static __device__ void End() {
    if constexpr (kClustered) Cluster::Await();
  }
};

template <typename T, int kPacks, bool kClustered = false>
class RegisterRow {
 public:
  using Team = RowTeam<kClustered>;
  static constexpr int kWidth = Vector<T>::kSize;

  __device__ RegisterRow(const T* x, int64_t cols) : packs_(int(cols / kWidth)) {
    Each([&](int i, int pack) { values_[i] = LoadVector(x + pack * kWidth); });
  }

  // The sum of `term` of each element.
  template <typename F>
  __device__ float Sum(const F& term) {
    __shared__ float exchange;
    float sum = 0;
    Each([&](int i, int) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum += term(float(values_[i].values[j]));
    });
    return Team::Sum(sum, exchange);
  }

  // y = element(x, scale, bias), without a bias where that is null.
  template <typename F>
  __device__ void Write(T* y, const T* scale, const T* bias, const F& element) {
    Each([&](int i, int pack) {
      const int at = pack * kWidth;
      const Vector<T> factor = LoadVector(scale + at);
      const Vector<T> offset = bias ? LoadVector(bias + at) : Vector<T>{};
      Vector<T> out;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        out.values[j] = T(
            element(float(values_[i].values[j]), float(factor.values[j]), float(offset.values[j])));
      }
      StoreVector(y + at, out);
    });
    Team::End();
  }

 private:
  template <typename F>
  __device__ void Each(const F& work) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = Team::Rank() + i * Team::Size();
      if (pack < packs_) work(i, pack);
    }
  }

  const int packs_;
  Vector<T> values_[kPacks];
};

// Elements of a row in memory, kWidth at a time: a vector where rows are aligned, else one.
template <typename T, int kAccess>
class MemoryRow {
 public:
  using Team = RowTeam<false>;

  __device__ MemoryRow(const T* x, int64_t cols)
      : x_(reinterpret_cast<const Pack*>(x)), packs_(cols / kAccess) {}

  template <typename F>
  __device__ float Sum(const F& term) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < packs_; i += blockDim.x) {
      const Pack pack = x_[i];
#pragma unroll
      for (int j = 0; j < kAccess; ++j) sum += term(float(pack.values[j]));
    }
    return BlockReduce<eet::Sum>(sum);
  }

  template <typename F>
  __device__ void Write(T* y, const T* scale, const T* bias, const F& element) {
    for (int64_t i = threadIdx.x; i < packs_; i += blockDim.x) {
      const Pack pack = x_[i], factor = At(scale, i), offset = bias ? At(bias, i) : Pack{};
      Pack out;
#pragma unroll
      for (int j = 0; j < kAccess; ++j) {
        out.values[j] =
            T(element(float(pack.values[j]), float(factor.values[j]), float(offset.values[j])));
      }
      reinterpret_cast<Pack*>(y)[i] = out;
    }
  }

 private:
  struct alignas(kAccess * sizeof(T)) Pack {
    T values[kAccess];
  };

  static __device__ Pack At(const T* values, int64_t i) {
    return reinterpret_cast<const Pack*>(values)[i];
  }

  const Pack* x_;
  const int64_t packs_;
};

// Calls `launch` with the type of row that serves [rows, cols] best and the shape of its grid.
template <typename T, typename F>
void DispatchRow(int64_t rows, int64_t cols, bool aligned, const F& launch) {
  constexpr int kVector = Vector<T>::kSize;
  const int64_t packs = aligned ? cols / kVector : cols;
  const auto shape = [&](int64_t threads, unsigned cluster_blocks = 1) {
    threads = std::min<int64_t>((threads + kWarpSize - 1) / kWarpSize * kWarpSize, kRowThreads);
    return LaunchShape{.grid = dim3(unsigned(rows) * cluster_blocks),
                       .block = dim3(unsigned(threads)),
                       .cluster_blocks = cluster_blocks};
  };
  if (!aligned) {
    launch.template operator()<MemoryRow<T, 1>>(shape(packs));
  } else if (packs <= 128) {
    launch.template operator()<RegisterRow<T, 1>>(shape(packs));
  } else if (packs <= 512) {
    launch.template operator()<RegisterRow<T, 2>>(shape((packs + 1) / 2));
  } else if (packs <= kRegisterPacks) {
    launch.template operator()<RegisterRow<T, kRowPacks>>(shape((packs + 3) / kRowPacks));
  } else if (packs <= kRegisterPacks * kClusterBlocks && ComputeMajor() == 9) {
    constexpr int kShared = kRowPacks * kClusterBlocks;
    launch.template operator()<RegisterRow<T, kRowPacks, true>>(
        shape((packs + kShared - 1) / kShared, kClusterBlocks));
  } else {
    launch.template operator()<MemoryRow<T, kVector>>(shape(packs));
  }
}

}  // namespace eet
