// Online softmax:  weights 2^(score - max) / sum, with max and sum over the scores seen so far.
// Scores are in units of log 2, so that a weight takes one exponential of base 2.
#pragma once

#include <cmath>

#include "core/exp.h"

namespace eet {

struct SoftmaxState {
  float max = -INFINITY;
  float sum = 0.0f;

  // Raises the maximum to `score` at least. Returns the factor of all that was accumulated before,
  // which is exactly 1 where the maximum stays.
  EET_HOST_DEVICE float Raise(float score) {
    const float raised = fmaxf(max, score);
    const float factor = raised == max ? 1.0f : Exp2(max - raised);
    max = raised;
    sum *= factor;
    return factor;
  }

  // The weight of a score that is at most the maximum; 0 of minus infinity.
  EET_HOST_DEVICE float Weight(float score) const {
    return Exp2(score - (max == -INFINITY ? 0.0f : max));
  }

  struct Factors {
    float before, pushed;
  };

  // Takes in one score. Returns the factor of all before it and its own weight.
  EET_HOST_DEVICE Factors Push(float score) {
    const float before = Raise(score), weight = Weight(score);
    sum += weight;
    return {before, weight};
  }

  // Takes in all that another state has seen. Returns the factors of the two accumulations.
  EET_HOST_DEVICE Factors Merge(const SoftmaxState& other) {
    const float before = Raise(other.max), factor = Weight(other.max);
    sum += other.sum * factor;
    return {before, factor};
  }

  // The factor of the accumulated values; 0 where no score was seen.
  EET_HOST_DEVICE float Normalizer() const { return sum > 0.0f ? 1.0f / sum : 0.0f; }
};

}  // namespace eet
