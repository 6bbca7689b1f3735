// Exponentials of a register of floats on the host.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace eet {

inline Floats Max(Floats a, Floats b) { return a > b ? a : b; }

// 2^x to about one unit in the last place for x <= 128; 0 where x < -126.5, also for minus
// infinity, and infinity from 127.5 on.
inline Floats Exp2(Floats x) {
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
  return power * (Floats)bits;
}

// e^x; infinity from 2^127.5 on.
inline Floats Exp(Floats x) {
  const Floats scaled = x * 1.44269504088896341f;
  return Exp2(scaled > 128.0f ? Broadcast(128.0f) : scaled);
}

// The complementary error function of x >= 0.
inline Floats ErrorComplement(Floats x) {
  // t * e^(p(t) - x^2), t = 1 / (1 + x / 2): the polynomial is fitted to t in [1/6, 1], to 5e-8.
  constexpr float kCoefficients[] = {
      0.14493021368980408f,  -0.6808272004127502f,   1.156733751296997f,   -0.6962519288063049f,
      -0.08028043061494827f, 0.0012675855541601777f, 0.03460279852151871f, 0.38664039969444275f,
      0.9986327886581421f,   -1.265447974205017f};
  const Floats t = 1.0f / (1.0f + 0.5f * x);
  Floats power{};
  for (const float coefficient : kCoefficients) power = power * t + coefficient;
  return t * Exp(power - x * x);
}

// The largest lane.
inline float ReduceMax(Floats value) {
  float largest = value[0];
  for (int i = 1; i < kLanes; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}

}  // namespace eet
