// Activation functions of feed-forward layers.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/types.h"

namespace eet {

// In the order of ACTIVATIONS in xla_ops.
enum class Activation : int64_t { kNone, kSilu, kGelu, kGeluTanh, kRelu, kQuickGelu };

EET_HOST_DEVICE float Sigmoid(float x) {
#ifdef __CUDA_ARCH__
  return __fdividef(1.0f, 1.0f + __expf(-x));  // to 2 units in the last place
#else
  return 1.0f / (1.0f + std::exp(-x));
#endif
}

EET_HOST_DEVICE float Activate(Activation activation, float x) {
  constexpr float kSqrtHalf = 0.70710678f, kSqrtTwoOverPi = 0.79788456f;
  switch (activation) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return 0.5f * x * std::erfc(-x * kSqrtHalf);
    case Activation::kGeluTanh:
      return x * Sigmoid(2.0f * kSqrtTwoOverPi * (x + 0.044715f * x * x * x));
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::kQuickGelu:
      return x * Sigmoid(1.702f * x);
    case Activation::kNone:
      return x;
  }
  return x;
}

}  // namespace eet
