// Activation functions of a register of floats on the host.
#pragma once

#include "core/simd.h"
#include "core/simd_exp.h"
#include "ops/activation.h"

namespace eet {

inline Floats Sigmoid(Floats x) { return 1.0f / (1.0f + Exp(-x)); }

inline Floats Gelu(Floats x) {
  constexpr float kSqrtHalf = 0.70710678f, kEnd = 14.0f;  // the tail is 0 from there on
  const Floats size = x < 0.0f ? -x : x;
  const Floats bounded = size > kEnd ? Broadcast(kEnd) : size;
  const Floats half_tail = 0.5f * bounded * ErrorComplement(bounded * kSqrtHalf);
  return x < 0.0f ? -half_tail : x - half_tail;
}

inline Floats Activate(Activation activation, Floats x) {
  constexpr float kTwoSqrtTwoOverPi = 2 * 0.79788456f;
  switch (activation) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return Gelu(x);
    case Activation::kGeluTanh:  // (1 + tanh(u)) / 2 = sigmoid(2 u)
      return x * Sigmoid(kTwoSqrtTwoOverPi * (x + 0.044715f * x * x * x));
    case Activation::kRelu:
      return x < 0.0f ? Floats{} : x;  // NaN stays
    case Activation::kQuickGelu:
      return x * Sigmoid(1.702f * x);
    case Activation::kNone:
      return x;
  }
  return x;
}

}  // namespace eet
