// What products on the host multiply: floats, or pairs of bfloat16 where the processor multiplies
// those and adds them to a float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/simd.h"

namespace eet {

// The type that elements of T are multiplied in.
#ifdef __AVX512BF16__
template <typename T>
using Factor = std::conditional_t<std::is_same_v<T, bfloat16>, bfloat16, float>;
#else
template <typename T>
using Factor = float;
#endif

// One register of factors F.
template <typename F>
struct Factors {
  static constexpr int kSize = sizeof(Floats) / sizeof(F);
  Floats bits;
};

// From elements of T, converted if they are not factors themselves.
template <typename T>
inline Factors<Factor<T>> LoadFactors(const T* pointer) {
  if constexpr (std::is_same_v<T, Factor<T>>) {
    Factors<T> factors;
    std::memcpy(&factors, pointer, sizeof(factors));
    return factors;
  } else {
    return {Load(pointer)};
  }
}

template <typename F>
inline void StoreFactors(F* pointer, Factors<F> factors) {
  std::memcpy(static_cast<void*>(pointer), &factors, sizeof(factors));
}

inline Floats MultiplyAdd(Floats sums, Factors<float> a, Factors<float> b) {
  return sums + a.bits * b.bits;
}

#ifdef __AVX512BF16__
inline Floats MultiplyAdd(Floats sums, Factors<bfloat16> a, Factors<bfloat16> b) {
  return _mm512_dpbf16_ps(sums, (__m512bh)a.bits, (__m512bh)b.bits);
}
#endif

// Writes `size` elements as factors, a register every `step`, with zeros after the last.
template <typename T>
inline void CopyFactors(const T* from, int64_t size, int64_t step, Factor<T>* to) {
  constexpr int kSize = Factors<Factor<T>>::kSize;
  const int64_t whole = size / kSize * kSize;
  for (int64_t i = 0; i < whole; i += kSize, to += step) StoreFactors(to, LoadFactors(from + i));
  if (whole == size) return;
  T rest[kSize] = {};
  std::copy(from + whole, from + size, rest);
  StoreFactors(to, LoadFactors(rest));
}

}  // namespace eet
