// Layer normalization of each row:
//   y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct LayerNormArgs {
  const T* x;      // [rows, cols]
  const T* scale;  // [cols]
  const T* bias;   // [cols] or nullptr
  T* y;            // [rows, cols]
  int64_t rows, cols;
  float eps;
  bool launches_dependents_early = false;  // as RowOperands has it
};

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args);

// One element of y. V: float, or a vector of floats.
template <typename V>
EET_HOST_DEVICE V LayerNormElement(V x, V scale, V bias, float mean, float inv_std) {
  return (x - mean) * inv_std * scale + bias;
}

}  // namespace eet
