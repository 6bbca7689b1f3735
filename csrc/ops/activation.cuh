// Activation functions where a kernel's code must stay small: each launch brings it to the
// multiprocessors anew.
#pragma once

#include "ops/activation.h"

namespace eet {

// All activations in one place: inlined, they would fill the instruction cache.
inline __device__ __noinline__ float ActivateOnce(Activation activation, float x) {
  return Activate(activation, x);
}

__device__ __forceinline__ float ActivateFast(Activation activation, float x) {
  return activation == Activation::kSilu ? x * Sigmoid(x) : ActivateOnce(activation, x);
}

}  // namespace eet
