// Root mean square normalization of each row:  y = x / sqrt(mean(x^2) + eps) * scale
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct RmsNormArgs {
  const T* x;      // [rows, cols]
  const T* scale;  // [cols]
  T* y;            // [rows, cols]
  int64_t rows, cols;
  float eps;
  bool launches_dependents_early = false;  // as RowOperands has it
};

template <typename T>
void RmsNorm(Stream stream, const RmsNormArgs<T>& args);

// One element of y. V: float, or a vector of floats.
template <typename V>
EET_HOST_DEVICE V RmsNormElement(V x, V scale, float inv_rms) {
  return x * inv_rms * scale;
}

}  // namespace eet
