// Exponentials of base 2, which one instruction of a GPU computes.
#pragma once

#include <cmath>

#include "core/types.h"
#ifdef EET_CUDA
#include "core/instructions.cuh"
#endif

namespace eet {

constexpr float kLog2E = 1.44269504088896341f;

EET_HOST_DEVICE float Exp2(float x) {
#ifdef __CUDA_ARCH__
  return FastExp2(x);
#else
  return std::exp2(x);
#endif
}

// 1 / x
EET_HOST_DEVICE float Reciprocal(float x) {
#ifdef __CUDA_ARCH__
  return FastReciprocal(x);
#else
  return 1.0f / x;
#endif
}

}  // namespace eet
