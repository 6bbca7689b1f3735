// As many floats at a time as one register of the host holds, in the compiler's portable vector
// types; instructions by name only where those compile badly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __F16C__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC 12 takes lanes left open for a mistake
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

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
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// 0, 1, 2, ...
inline Ints LaneIndices() {
  Ints index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}

inline Floats Broadcast(float value) { return Floats{} + value; }

inline Floats Load(const float* pointer) {
  Floats value;
  std::memcpy(&value, pointer, sizeof(value));
  return value;
}

inline Halves LoadHalves(const void* pointer) {
  Halves halves;
  std::memcpy(&halves, pointer, sizeof(halves));
  return halves;
}

inline Floats Load(const bfloat16* pointer) {
  return (Floats)(__builtin_convertvector(LoadHalves(pointer), Ints) << 16);
}

#ifdef __AVX512F__

inline Floats Load(const float16* pointer) { return _mm512_cvtph_ps((__m256i)LoadHalves(pointer)); }

#elif defined(__F16C__)

inline Floats Load(const float16* pointer) { return _mm256_cvtph_ps((__m128i)LoadHalves(pointer)); }

#else

// Widens exponent and mantissa as integers: compilers convert _Float16 lanes one by one.
__attribute__((always_inline)) inline Floats Load(const float16* pointer) {
  constexpr int32_t kExponent = 0x1f << 23;        // where float16 has it, in float's place
  constexpr int32_t kRebias = (127 - 15) << 23;    // from one format's exponents to the other's
  constexpr int32_t kSmallest = (127 - 14) << 23;  // 2^-14, below which float16 is subnormal
  const Ints words = __builtin_convertvector(LoadHalves(pointer), Ints);
  const Ints sign = (words & 0x8000) << 16;
  const Ints magnitude = (words & 0x7fff) << 13;
  const Ints exponent = magnitude & kExponent;
  // All ones where the shifted number is negative: comparisons of wide vectors are slow.
  const Ints is_special = (kExponent - (1 << 23) - exponent) >> 31;
  const Ints is_subnormal = (exponent - 1) >> 31;
  const Ints normal = magnitude + kRebias + (is_special & kRebias);
  const Floats subnormal = (Floats)(magnitude + kSmallest) - (Floats)(Ints{} + kSmallest);
  return (Floats)(((Ints)subnormal & is_subnormal) | (normal & ~is_subnormal) | sign);
}

#endif

inline void Store(float* pointer, Floats value) { std::memcpy(pointer, &value, sizeof(value)); }

// Rounds to nearest even, as bfloat16(float) does.
inline void Store(bfloat16* pointer, Floats value) {
  const Ints words = (Ints)value;
  const Ints rounded = words + 0x7fff + ((words >> 16) & 1);
  const Ints quiet = words | 0x400000;
  const Ints is_nan = (Ints)(value != value);
  const Ints high = (((rounded & ~is_nan) | (quiet & is_nan)) >> 16) & 0xffff;
  const Halves halves = __builtin_convertvector(high, Halves);
  std::memcpy(&pointer->bits, &halves, sizeof(halves));
}

inline void Store(float16* pointer, Floats value) {
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(pointer, &halves, sizeof(halves));
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(pointer, &halves, sizeof(halves));
#else
  for (int i = 0; i < kLanes; ++i) pointer[i] = float16(value[i]);
#endif
}

// How many lanes are meant: all of them, known to the compiler, or the first few at an array's end.
using AllLanes = std::integral_constant<int, kLanes>;

// Zeros in the lanes that are not meant.
template <typename T, typename Count>
inline Floats Load(const T* pointer, Count count) {
  if constexpr (std::is_same_v<Count, AllLanes>) return Load(pointer);
  T lanes[kLanes] = {};
  std::copy_n(pointer, count, lanes);
  return Load(lanes);
}

template <typename T, typename Count>
inline void Store(T* pointer, Floats value, Count count) {
  if constexpr (std::is_same_v<Count, AllLanes>) return Store(pointer, value);
  T lanes[kLanes];
  Store(lanes, value);
  std::copy_n(lanes, count, pointer);
}

// Calls body(i, count) for the vectors of [0, size), with count as Load and Store take it.
template <typename Body>
inline void ForEachVector(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, AllLanes{});
  if (i < size) body(i, int(size - i));
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
