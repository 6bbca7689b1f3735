// The language of kernels: qualifiers, vectors, what a thread knows of itself, what a warp does.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // see machine.h

extern emulated::Dimensions threadIdx, blockIdx, blockDim, gridDim;  // of the current thread

struct dim3 : emulated::Dimensions {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : Dimensions{x, y, z} {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __expf(float x) { return std::exp(x); }
inline float __log2f(float x) { return std::log2(x); }
inline int __popc(unsigned word) { return std::popcount(word); }
inline int __ffs(unsigned word) { return word ? std::countr_zero(word) + 1 : 0; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

// Byte i of the result is that of the eight bytes of low and high which digit i of `select` names.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= unsigned(bytes >> (select >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}

inline void __threadfence_block() {}

// Nobody else runs meanwhile.
template <typename T>
T atomicAdd(T* sum, T value) {
  const T before = *sum;
  *sum += value;
  return before;
}

template <typename T>
T atomicOr(T* bits, T value) {
  const T before = *bits;
  *bits |= value;
  return before;
}

inline void __syncthreads(emulated::Where where = emulated::Where::current()) {
  emulated::WaitAtBarrier(0, int(blockDim.count()), where);
}

inline void __syncwarp(unsigned mask = ~0u, emulated::Where where = emulated::Where::current()) {
  emulated::Meet("__syncwarp", mask, mask, where, [](const auto&) {});
}

namespace emulated {

template <typename T>
struct Exchanged {
  T value;
  int from;
  T result;
};

template <typename T>
T Shuffle(unsigned mask, T value, int from, Where where) {
  Exchanged<T> mine{value, from, value};
  Meet("a shuffle", mask, mine, where, [](const auto& lanes) {
    for (auto* lane : lanes) {
      if (!lane || lane->from < 0 || lane->from >= kWarpSize) continue;
      Check(lanes[lane->from], "a shuffle from a lane that does not take part");
      lane->result = lanes[lane->from]->value;
    }
  });
  return mine.result;
}

template <typename T, typename F>
T Reduce(unsigned mask, T value, Where where, const F& f) {
  Meet("a reduction", mask, value, where, [&](const auto& lanes) {
    T result = value;  // this lane's
    for (const T* lane : lanes) result = lane && lane != &value ? f(result, *lane) : result;
    for (T* lane : lanes) {
      if (lane) *lane = result;
    }
  });
  return value;
}

}  // namespace emulated

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane,
              emulated::Where where = emulated::Where::current()) {
  return emulated::Shuffle(mask, value, lane % emulated::kWarpSize, where);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits,
                  emulated::Where where = emulated::Where::current()) {
  return emulated::Shuffle(mask, value, emulated::current->lane() ^ bits, where);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance,
                 emulated::Where where = emulated::Where::current()) {
  return emulated::Shuffle(mask, value, emulated::current->lane() - distance, where);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance,
                   emulated::Where where = emulated::Where::current()) {
  return emulated::Shuffle(mask, value, emulated::current->lane() + distance, where);
}

template <typename T>
T __reduce_min_sync(unsigned mask, T value, emulated::Where where = emulated::Where::current()) {
  return emulated::Reduce(mask, value, where, [](T a, T b) { return min(a, b); });
}

template <typename T>
T __reduce_max_sync(unsigned mask, T value, emulated::Where where = emulated::Where::current()) {
  return emulated::Reduce(mask, value, where, [](T a, T b) { return max(a, b); });
}

template <typename T>
T __reduce_add_sync(unsigned mask, T value, emulated::Where where = emulated::Where::current()) {
  return emulated::Reduce(mask, value, where, [](T a, T b) { return a + b; });
}

inline unsigned __ballot_sync(unsigned mask, bool value,
                              emulated::Where where = emulated::Where::current()) {
  const unsigned mine = unsigned{value} << emulated::current->lane();
  return emulated::Reduce(mask, mine, where, [](unsigned a, unsigned b) { return a | b; });
}

inline bool __any_sync(unsigned mask, bool value,
                       emulated::Where where = emulated::Where::current()) {
  return __ballot_sync(mask, value, where) != 0;
}
