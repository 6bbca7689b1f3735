// Activation functions of feed-forward layers.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/exp.h"

namespace eet {

// In the order of ACTIVATIONS in xla_ops.
enum class Activation : int64_t { kNone, kSilu, kGelu, kGeluTanh, kRelu, kQuickGelu };

// 1 / (1 + 2^-x), without a branch
EET_HOST_DEVICE float SigmoidOfTwo(float x) { return Reciprocal(1.0f + Exp2(-x)); }

EET_HOST_DEVICE float Sigmoid(float x) { return SigmoidOfTwo(kLog2E * x); }

EET_HOST_DEVICE float Activate(Activation activation, float x) {
  constexpr float kSqrtHalf = 0.70710678f;
  constexpr float kTanh = 2.0f * 0.79788456f * kLog2E, kCube = 0.044715f * kTanh;
  switch (activation) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return 0.5f * x * std::erfc(-x * kSqrtHalf);
    case Activation::kGeluTanh:
      return x * SigmoidOfTwo(x * (kTanh + kCube * (x * x)));
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::kQuickGelu:
      return x * SigmoidOfTwo(1.702f * kLog2E * x);
    case Activation::kNone:
      return x;
  }
  return x;
}

}  // namespace eet
