// One random token per row. With p(x) the logit after the repetition penalty,
//   z = (p(x) - max p(x)) / temperature,  token = argmax over kept tokens of z + gumbel,
// or argmax p(x) where the temperature is 0 or the largest logit is infinite. Kept are the top_k
// largest; of these the most probable ones whose probability reaches top_p; of these the ones with
// at least min_p times the largest probability. Equal logits are kept or dropped together.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "core/random.h"
#include "core/stream.h"
#include "core/types.h"

namespace eet {

struct SampleArgs {
  const float* logits;              // [rows, vocab]
  const uint32_t* keys;             // [rows, 2]
  const int32_t* positions;         // [rows]
  const float* temperature;         // [rows]; 0 or less: greedy
  const int32_t* top_k;             // [rows]; 0 or less: all
  const float* top_p;               // [rows]; 1 or more: all
  const float* min_p;               // [rows]; 0 or less: all
  const float* repetition_penalty;  // [rows]
  const uint8_t* seen;              // [rows, vocab], tokens to penalize; or nullptr
  int32_t* tokens;                  // [rows]
  float* logprobs;                  // [rows], of the raw logits
  int64_t rows, vocab;
};

void Sample(Stream stream, const SampleArgs& args);

// A float's bits as an integer of the same order; -inf comes before all numbers.
EET_HOST_DEVICE uint32_t OrderedImage(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

EET_HOST_DEVICE float FromOrderedImage(uint32_t image) {
  return std::bit_cast<float>(image & 0x80000000u ? image & 0x7fffffffu : ~image);
}

// A token and its score in one integer: the maximum over a row is its argmax, and the lowest of
// equal tokens.
EET_HOST_DEVICE uint64_t Rank(float score, int64_t token) {
  return uint64_t{OrderedImage(score)} << 32 | ~uint32_t(token);
}

EET_HOST_DEVICE int32_t RankToken(uint64_t rank) { return int32_t(~uint32_t(rank)); }

EET_HOST_DEVICE float RankScore(uint64_t rank) { return FromOrderedImage(uint32_t(rank >> 32)); }

// The sum of exp(x) over the numbers pushed, as exp(max) * sum; NaN if one is NaN or infinite.
struct LogSumExp {
  float max, sum;

  static EET_HOST_DEVICE LogSumExp Empty() { return {-INFINITY, 0}; }

  EET_HOST_DEVICE void Push(float x) {
    if (x > max) {
      sum = sum * expf(max - x) + 1;
      max = x;
    } else if (x != -INFINITY) {
      sum += expf(x - max);
    }
  }

  EET_HOST_DEVICE void Merge(LogSumExp other) {
    const bool swap = other.max > max;
    const LogSumExp low = swap ? *this : other;
    if (swap) *this = other;
    sum += low.max == -INFINITY ? low.sum : low.sum * expf(low.max - max);
  }

  EET_HOST_DEVICE float LogProbability(float x) const { return x - max - logf(sum); }
};

// One row's operands and settings.
struct SampleRow {
  const float* logits;  // [vocab]
  const uint8_t* seen;  // [vocab], or nullptr when nothing is penalized
  int64_t vocab;
  RandomPair key;
  uint32_t position;
  int32_t top_k;
  float temperature, top_p, min_p, penalty;

  EET_HOST_DEVICE SampleRow(const SampleArgs& args, int64_t row)
      : logits(args.logits + row * args.vocab),
        seen(args.repetition_penalty[row] == 1 || !args.seen ? nullptr
                                                             : args.seen + row * args.vocab),
        vocab(args.vocab),
        key{args.keys[2 * row], args.keys[2 * row + 1]},
        position(uint32_t(args.positions[row])),
        top_k(args.top_k[row]),
        temperature(args.temperature[row] == INFINITY ? FLT_MAX : args.temperature[row]),
        top_p(args.top_p[row]),
        min_p(args.min_p[row]),
        penalty(args.repetition_penalty[row]) {}

  // NaN never wins, and both zeros are equal.
  EET_HOST_DEVICE float Penalized(float x, bool is_seen) const {
    const float y = !is_seen ? x : x > 0 ? x / penalty : x * penalty;
    return y != y ? -INFINITY : y + 0.0f;
  }

  EET_HOST_DEVICE float Penalized(int64_t token) const {
    return Penalized(logits[token], seen && seen[token]);
  }

  EET_HOST_DEVICE bool IsGreedy(float max) const {
    return !(temperature > 0) || !(max > -INFINITY && max < INFINITY);
  }

  EET_HOST_DEVICE bool FiltersByRank() const { return top_k > 0 && top_k < vocab; }
  EET_HOST_DEVICE bool FiltersByMass() const { return top_p < 1; }

  EET_HOST_DEVICE float Scaled(float logit, float max) const { return (logit - max) / temperature; }

  EET_HOST_DEVICE bool PassesMinP(float scaled) const {
    return !(min_p > 0) || scaled == 0 || expf(scaled) >= min_p;
  }

  // A probability relative to the largest, in units whose sums are exact.
  EET_HOST_DEVICE uint64_t Mass(float scaled) const { return uint64_t(expf(scaled) * 0x1p40f); }

  // The least mass that reaches top_p.
  EET_HOST_DEVICE uint64_t MassGoal(uint64_t total) const {
    const double goal = ceil(double(top_p) * double(total));
    return goal >= 1 ? uint64_t(goal) : 1;
  }

  // The random bits of tokens 2 * pair and 2 * pair + 1.
  EET_HOST_DEVICE RandomPair Bits(int64_t pair) const {
    return Threefry(key, {position, uint32_t(pair)});
  }
};

}  // namespace eet
