// As many floats at a time as one register of the host holds, in the compiler's portable vector
// types.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/types.h"

namespace eet {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // SSE, NEON
#endif
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));

inline Floats Broadcast(float value) { return Floats{} + value; }

inline Floats Load(const float* pointer) {
  Floats value;
  std::memcpy(&value, pointer, sizeof(value));
  return value;
}

inline Floats Load(const bfloat16* pointer) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  Halves halves;
  std::memcpy(&halves, pointer, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats value;
  std::memcpy(&value, &words, sizeof(value));
  return value;
}

// Widens exponent and mantissa as integers: compilers convert _Float16 lanes one by one.
__attribute__((always_inline)) inline Floats Load(const float16* pointer) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));
  typedef int32_t Words __attribute__((vector_size(kLanes * sizeof(int32_t))));
  constexpr int32_t kExponent = 0x1f << 23;        // where float16 has it, in float's place
  constexpr int32_t kRebias = (127 - 15) << 23;    // from one format's exponents to the other's
  constexpr int32_t kSmallest = (127 - 14) << 23;  // 2^-14, below which float16 is subnormal
  Halves halves;
  std::memcpy(&halves, pointer, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words);
  const Words sign = (words & 0x8000) << 16;
  const Words magnitude = (words & 0x7fff) << 13;
  const Words exponent = magnitude & kExponent;
  // All ones where the shifted number is negative: comparisons of wide vectors are slow.
  const Words is_special = (kExponent - (1 << 23) - exponent) >> 31;
  const Words is_subnormal = (exponent - 1) >> 31;
  const Words normal = magnitude + kRebias + (is_special & kRebias);
  const Floats subnormal = (Floats)(magnitude + kSmallest) - (Floats)(Words{} + kSmallest);
  return (Floats)(((Words)subnormal & is_subnormal) | (normal & ~is_subnormal) | sign);
}

template <typename T>
inline void Store(T* pointer, Floats value) {
  for (int i = 0; i < kLanes; ++i) pointer[i] = T(value[i]);
}

template <>
inline void Store(float* pointer, Floats value) {
  std::memcpy(pointer, &value, sizeof(value));
}

// The sum of the lanes, halves folded onto each other.
inline float ReduceSum(Floats value) {
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof(value));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The inner product of two rows.
template <typename T, typename U>
inline float Dot(const T* a, const U* b, int64_t size) {
  Floats sum{}, other{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    sum += Load(a + i) * Load(b + i);
    other += Load(a + i + kLanes) * Load(b + i + kLanes);
  }
  for (; i + kLanes <= size; i += kLanes) sum += Load(a + i) * Load(b + i);
  float total = ReduceSum(sum + other);
  for (; i < size; ++i) total += float(a[i]) * float(b[i]);
  return total;
}

}  // namespace eet
