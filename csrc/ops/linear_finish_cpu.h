// From products to outputs on the host: bias, activation, gate and residual, a register at a time.
#pragma once

#include "core/simd.h"
#include "ops/activation_cpu.h"
#include "ops/linear.h"

namespace eet {

// The even and the odd ones of two registers' elements.
inline std::pair<Floats, Floats> Deinterleave(Floats low, Floats high) {
  const Ints even = 2 * LaneIndices();
  return {__builtin_shuffle(low, high, even), __builtin_shuffle(low, high, even + 1)};
}

// Finishes the outputs [col, col + size) of a row, which is one of x @ kernel^T.
template <typename T, typename Y>
void FinishOutputs(const LinearArgs<T, Y>& args, int64_t row, int64_t col, int64_t size,
                   const float* products) {
  const T* bias = args.bias ? args.bias + col : nullptr;
  const int64_t at = row * args.out + col;
  ForEachVector(size, [&](int64_t i, auto count) {
    Floats value = Load(products + i, count);
    if (bias) value += Load(bias + i, count);
    value = Activate(args.activation, value);
    if (args.residual) value += Load(args.residual + at + i, count);
    Store(args.y + at + i, value, count);
  });
}

// The same, gated: `col` and `size` are even, and half as many outputs result.
template <typename T, typename Y>
void FinishGated(const LinearArgs<T, Y>& args, int64_t row, int64_t col, int64_t size,
                 const float* products) {
  const T* bias = args.bias ? args.bias + col : nullptr;
  const int64_t at = (row * args.out + col) / 2;
  ForEachVector(size / 2, [&](int64_t i, auto count) {
    const auto load = [&](const auto* from) {
      const int64_t high = std::max<int64_t>(0, 2 * count - kLanes);
      return Deinterleave(Load(from + 2 * i, std::min<int>(kLanes, 2 * count)),
                          Load(from + 2 * i + kLanes, high));
    };
    auto [gate, up] = load(products);
    if (bias) {
      const auto [gate_bias, up_bias] = load(bias);
      gate += gate_bias;
      up += up_bias;
    }
    Floats value = Activate(args.activation, gate) * up;
    if (args.residual) value += Load(args.residual + at + i, count);
    Store(args.y + at + i, value, count);
  });
}

template <typename T, typename Y>
void Finish(const LinearArgs<T, Y>& args, int64_t row, int64_t col, int64_t size,
            const float* products) {
  if (args.gated) {
    FinishGated(args, row, col, size, products);
  } else {
    FinishOutputs(args, row, col, size, products);
  }
}

}  // namespace eet
