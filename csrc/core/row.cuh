// Rows of a tensor for kernels that need sums over all of a row before they write any of it. A kind
// of row deals rows to blocks, and has each row's sums and results:
//
//   RegisterRow   a block for each row, whose elements stay in registers, so that memory is read
//                 once: up to kRegisterPacks vectors.
//   MemoryRow     a block for each row of any size and alignment; each sum reads it again, from the
//                 caches if it fits.
//   StreamedRow   one row after the other through the shared memory of the blocks that are there
//                 (streamed_row.cuh).
#pragma once

#include <type_traits>

#include "core/instructions.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"

namespace eet {

constexpr int kRowThreads = 512;
constexpr int kRowPacks = 4;  // vectors of a thread, at most
constexpr int64_t kRegisterPacks = kRowThreads * kRowPacks;

// y = f(x, scale, bias), row by row.
template <typename T>
struct RowOperands {
  const T* x;      // [rows, cols]
  const T* scale;  // [cols]
  const T* bias;   // [cols] or nullptr, which is zeros
  T* y;            // [rows, cols]
  int64_t rows, cols;
  // Before it waits for preceding kernels: what the next kernel reads early none of them writes.
  bool launches_dependents_early = false;

  bool Aligned() const {
    return cols % Vector<T>::kSize == 0 && IsAligned16(x) && IsAligned16(scale) &&
           IsAligned16(bias) && IsAligned16(y);
  }
};

// sum + the terms of a pack's elements, one after the other.
template <class Pack, typename F>
__device__ float AddTerms(float sum, const Pack& x, const F& term) {
#pragma unroll
  for (int j = 0; j < std::extent_v<decltype(Pack::values)>; ++j) sum += term(float(x.values[j]));
  return sum;
}

// element(x, scale, bias) for each element of a pack.
template <class Pack, typename F>
__device__ Pack MapElements(const Pack& x, const Pack& scale, const Pack& bias, const F& element) {
  using T = std::remove_extent_t<decltype(Pack::values)>;
  Pack y;
#pragma unroll
  for (int j = 0; j < std::extent_v<decltype(Pack::values)>; ++j) {
    y.values[j] = T(element(float(x.values[j]), float(scale.values[j]), float(bias.values[j])));
  }
  return y;
}

// What kinds of rows with a block for each row have in common.
template <class Row>
struct BlockPerRow {
  static constexpr int kThreads = kRowThreads;  // at most
  static constexpr int kLeastBlocks = 0;        // of a multiprocessor: as the compiler sees fit

  // Calls work(row) for this block's row.
  template <typename T, typename F>
  static __device__ void ForEach(const RowOperands<T>& rows, const F& work) {
    if (rows.launches_dependents_early) LaunchDependents();
    WaitForDependencies();
    LaunchDependents();
    Row row(rows, blockIdx.x * rows.cols);
    work(row);
  }
};

template <typename T, int kPacks>
class RegisterRow : public BlockPerRow<RegisterRow<T, kPacks>> {
 public:
  static constexpr int kWidth = Vector<T>::kSize;

  __device__ RegisterRow(const RowOperands<T>& rows, int64_t offset)
      : rows_(rows), y_(rows.y + offset), packs_(int(rows.cols / kWidth)) {
    const T* x = rows.x + offset;
    Each([&](int i, int at) { values_[i] = LoadVector(x + at); });
  }

  // The sum of `term` of each element.
  template <typename F>
  __device__ float Sum(const F& term) {
    float sum = 0;
    Each([&](int i, int) { sum = AddTerms(sum, values_[i], term); });
    return BlockReduce<eet::Sum>(sum);
  }

  // y = element(x, scale, bias).
  template <typename F>
  __device__ void Write(const F& element) {
    Each([&](int i, int at) {
      const Vector<T> scale = LoadVector(rows_.scale + at);
      const Vector<T> bias = rows_.bias ? LoadVector(rows_.bias + at) : Vector<T>{};
      StoreVector(y_ + at, MapElements(values_[i], scale, bias, element));
    });
  }

 private:
  template <typename F>
  __device__ void Each(const F& work) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = threadIdx.x + i * blockDim.x;
      if (pack < packs_) work(i, pack * kWidth);
    }
  }

  const RowOperands<T>& rows_;
  T* const y_;
  const int packs_;
  Vector<T> values_[kPacks];
};

// Elements of a row in memory, kAccess at a time: a vector where rows are aligned, else one.
template <typename T, int kAccess>
class MemoryRow : public BlockPerRow<MemoryRow<T, kAccess>> {
 public:
  __device__ MemoryRow(const RowOperands<T>& rows, int64_t offset)
      : rows_(rows), x_(rows.x + offset), y_(rows.y + offset), packs_(rows.cols / kAccess) {}

  template <typename F>
  __device__ float Sum(const F& term) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < packs_; i += blockDim.x) {
      sum = AddTerms(sum, At(x_, i), term);
    }
    return BlockReduce<eet::Sum>(sum);
  }

  template <typename F>
  __device__ void Write(const F& element) {
    for (int64_t i = threadIdx.x; i < packs_; i += blockDim.x) {
      const Pack scale = At(rows_.scale, i), bias = rows_.bias ? At(rows_.bias, i) : Pack{};
      const Pack y = MapElements(At(x_, i), scale, bias, element);
      reinterpret_cast<Pack*>(y_)[i] = y;
    }
  }

 private:
  struct alignas(kAccess * sizeof(T)) Pack {
    T values[kAccess];
  };

  static __device__ Pack At(const T* values, int64_t i) {
    return reinterpret_cast<const Pack*>(values)[i];
  }

  const RowOperands<T>& rows_;
  const T* const x_;
  T* const y_;
  const int64_t packs_;
};

}  // namespace eet
