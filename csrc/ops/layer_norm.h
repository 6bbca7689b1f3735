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
};

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args);

template <typename T>
EET_HOST_DEVICE T LayerNormElement(T x, T scale, float bias, float mean, float inv_std) {
  return T((float(x) - mean) * inv_std * float(scale) + bias);
}

}  // namespace eet
