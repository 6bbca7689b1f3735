// Sampling on the host: rows in parallel; thresholds by histograms of the ordered logits.
#include <algorithm>

#include "core/parallel.h"
#include "core/simd_exp.h"
#include "ops/sample.h"

namespace eet {

// NaN is never the largest.
static float LargestOf(const float* values, int64_t size) {
  Floats largest = Broadcast(-INFINITY);
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) largest = Max(Load(values + i), largest);
  float result = ReduceMax(largest);
  for (int64_t i = whole; i < size; ++i) result = values[i] > result ? values[i] : result;
  return result;
}

// Looks for the block of the largest logit, which is vectors' work, and then in it.
static uint64_t Argmax(const SampleRow& row) {
  constexpr int64_t kBlock = 1024;
  float largest = -INFINITY;
  int64_t found = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    float penalized[kBlock];
    const int64_t size = std::min(kBlock, row.vocab - begin);
    for (int64_t i = 0; i < size; ++i) penalized[i] = row.Penalized(begin + i);
    const float candidate = LargestOf(penalized, size);
    if (candidate > largest) {
      largest = candidate;
      found = begin;
    }
  }
  uint64_t best = 0;
  for (int64_t token = found; token < std::min(row.vocab, found + kBlock); ++token) {
    best = std::max(best, Rank(row.Penalized(token), token));
  }
  return best;
}

static LogSumExp SumExponentials(const float* logits, int64_t size) {
  LogSumExp sum = LogSumExp::Empty();
  const int64_t whole = size / kLanes * kLanes;
  if (whole > 0) {
    Floats total{};
    sum.max = LargestOf(logits, whole);
    const float from = sum.max == -INFINITY ? 0 : sum.max;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Floats logit = Load(logits + i);
      total += Exp(logit == from ? Floats{} : logit - from);  // infinity less itself is no number
    }
    sum.sum = ReduceSum(total);
  }
  for (int64_t i = whole; i < size; ++i) sum.Push(logits[i]);
  return sum;
}

// Summed in blocks: one running float32 sum over a large vocabulary loses digits.
static float LogProbability(const SampleRow& row, int64_t token) {
  constexpr int64_t kBlock = 4096;
  LogSumExp sum = LogSumExp::Empty();
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    sum.Merge(SumExponentials(row.logits + begin, std::min(kBlock, row.vocab - begin)));
  }
  return sum.LogProbability(row.logits[token]);
}

// A threshold among ordered images is found digit by digit, the highest first. Digit i is made of
// the bits from edge i + 1 up to edge i.
constexpr int kDigits = 3;
constexpr int kDigitBits = 11;
constexpr int kDigitValues = 1 << kDigitBits;

static int DigitEdge(int i) { return i < kDigits ? 32 - kDigitBits * i : 0; }

static uint32_t Digit(uint32_t image, int i) {
  return (image >> DigitEdge(i + 1)) & ((1u << (DigitEdge(i) - DigitEdge(i + 1))) - 1);
}

// Whether two images have the same bits from `edge` up.
static bool SameAbove(int edge, uint32_t a, uint32_t b) { return uint64_t{a ^ b} >> edge == 0; }

// The largest image so that the weights of all images from it up, none below `least`, reach
// goal(sum of the weights).
template <typename Weight, typename Goal>
static uint32_t Threshold(const SampleRow& row, uint32_t least, const Weight& weight,
                          const Goal& goal_of) {
  uint32_t prefix = 0;
  uint64_t above = 0, goal = 0;
  for (int i = 0; i < kDigits; ++i) {
    uint64_t histogram[kDigitValues] = {};
    uint64_t total = 0;
    for (int64_t token = 0; token < row.vocab; ++token) {
      const float logit = row.Penalized(token);
      const uint32_t image = OrderedImage(logit);
      if (image < least || !SameAbove(DigitEdge(i), image, prefix)) continue;
      const uint64_t mass = weight(logit);
      histogram[Digit(image, i)] += mass;
      total += mass;
    }
    if (i == 0) goal = goal_of(total);
    int digit = kDigitValues - 1;
    while (digit > 0 && above + histogram[digit] < goal) above += histogram[digit--];
    prefix |= uint32_t(digit) << DigitEdge(i + 1);
  }
  return prefix;
}

// The smallest kept image, min-p aside.
static uint32_t Threshold(const SampleRow& row, float max) {
  uint32_t least = 0;
  if (row.FiltersByRank()) {
    least = Threshold(
        row, least, [](float) { return uint64_t{1}; },
        [&](uint64_t) { return uint64_t(row.top_k); });
  }
  if (row.FiltersByMass()) {
    least = Threshold(
        row, least, [&](float logit) { return row.Mass(row.Scaled(logit, max)); },
        [&](uint64_t total) { return row.MassGoal(total); });
  }
  return least;
}

static int32_t Draw(const SampleRow& row, float max) {
  constexpr int64_t kPairs = 64;
  const uint32_t least = Threshold(row, max);
  uint64_t best = 0;
  float best_score = -INFINITY;
  for (int64_t begin = 0; begin < row.vocab; begin += 2 * kPairs) {
    uint32_t bits[2][kPairs];
    for (int64_t i = 0; i < kPairs; ++i) {
      const RandomPair pair = row.Bits(begin / 2 + i);
      bits[0][i] = pair.first;
      bits[1][i] = pair.second;
    }
    const int64_t end = std::min(row.vocab, begin + 2 * kPairs);
    for (int64_t token = begin; token < end; ++token) {
      const float logit = row.Penalized(token);
      if (OrderedImage(logit) < least) continue;
      const float scaled = row.Scaled(logit, max);
      const uint32_t token_bits = bits[token % 2][(token - begin) / 2];
      // Most tokens cannot win whatever their logarithms are.
      if (scaled + GumbelBound(token_bits) < best_score || !row.PassesMinP(scaled)) continue;
      best = std::max(best, Rank(scaled + Gumbel(token_bits), token));
      best_score = RankScore(best);
    }
  }
  return RankToken(best);
}

static void SampleOne(const SampleArgs& args, int64_t index) {
  const SampleRow row(args, index);
  const uint64_t best = Argmax(row);
  const float max = RankScore(best);
  const int32_t token = row.IsGreedy(max) ? RankToken(best) : Draw(row, max);
  args.tokens[index] = token;
  args.logprobs[index] = LogProbability(row, token);
}

void Sample(Stream stream, const SampleArgs& args) {
  ParallelFor(stream, args.rows, [&](int64_t row) { SampleOne(args, row); });
}

}  // namespace eet
