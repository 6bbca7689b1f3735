// The norm of a decoder layer, whichever kind it is.
#pragma once

#include "ops/layer_norm.h"
#include "ops/rms_norm.h"

namespace eet {

enum class NormKind { kRms, kLayer };

template <typename T>
struct NormWeights {
  NormKind kind;
  const T* scale;  // [hidden]
  const T* bias;   // [hidden] or nullptr
  float eps;
};

template <typename T>
void Norm(Stream stream, const NormWeights<T>& weights, const T* x, T* y, int64_t rows,
          int64_t cols, bool launches_dependents_early) {
  if (weights.kind == NormKind::kRms) {
    RmsNorm(stream, RmsNormArgs<T>{.x = x,
                                   .scale = weights.scale,
                                   .y = y,
                                   .rows = rows,
                                   .cols = cols,
                                   .eps = weights.eps,
                                   .launches_dependents_early = launches_dependents_early});
  } else {
    LayerNorm(stream, LayerNormArgs<T>{.x = x,
                                       .scale = weights.scale,
                                       .bias = weights.bias,
                                       .y = y,
                                       .rows = rows,
                                       .cols = cols,
                                       .eps = weights.eps,
                                       .launches_dependents_early = launches_dependents_early});
  }
}

}  // namespace eet
