// Powers of two of sixteen floats at a time on the host.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace eet {

inline Floats Max(Floats a, Floats b) { return a > b ? a : b; }

// 2^x to about one unit in the last place; 0 where x < -126.5, also for minus infinity. x <= 127.
inline Floats Exp2(Floats x) {
  typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
  constexpr float kRound = 12582912.0f;  // adding 1.5 * 2^23 leaves no bits for a fraction
  constexpr int kExponentBias = 127, kMantissaBits = 23;
  const Floats clamped = x < -127.0f ? Broadcast(-127.0f) : x;
  const Floats whole = (clamped + kRound) - kRound;
  const Floats t = (clamped - whole) * 0.693147180559945f;
  // The series of e^t for |t| <= ln(2) / 2.
  Floats power = Broadcast(1.0f / 5040);
  power = power * t + 1.0f / 720;
  power = power * t + 1.0f / 120;
  power = power * t + 1.0f / 24;
  power = power * t + 1.0f / 6;
  power = power * t + 0.5f;
  power = power * t + 1.0f;
  power = power * t + 1.0f;
  const Ints bits = (__builtin_convertvector(whole, Ints) + kExponentBias) << kMantissaBits;
  Floats scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return power * scale;
}

// The largest lane.
inline float ReduceMax(Floats value) {
  float largest = value[0];
  for (int i = 1; i < kLanes; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}

}  // namespace eet
