// A linear layer with everything around it:  y = activation(x @ kernel^T + bias) + residual
// or, gated, with activation(gate) * up of adjacent outputs in place of activation(.).
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/stream.h"
#include "core/types.h"
#include "ops/activation.h"

namespace eet {

// How the product is computed. Chosen by the caller: the order of a sum depends on the path, never
// on the number of rows, so that a row's bits do not depend on its neighbours.
enum class LinearPath : int64_t {
  kDecode,   // few rows: reads the kernel once at full bandwidth
  kPrefill,  // many rows: GEMMs on CUDA
};

// An RMS norm between two products needs no kernel of its own: the first also leaves y * scale and
// sums of the squares of y; the second multiplies y * scale, and its sums by the reciprocal root
// mean square, which is the same for all columns of a row. Only where LinearSquareParts says so.

// What the first product leaves for the norm.
template <typename Y>
struct ScaledOutput {
  const Y* scale = nullptr;  // [out]; nullptr: no norm follows
  Y* scaled = nullptr;       // [rows, out]
  float* squares = nullptr;  // [rows, LinearSquaresLine(out)]
};

// What the second one takes of it.
struct NormedInput {
  const float* squares = nullptr;  // [rows, LinearSquaresLine(in)]; nullptr: x is as it should be
  int64_t parts = 0;               // sums of a row
  float eps = 0.0f;
};

template <typename T, typename Y = T>
struct LinearArgs {
  const T* x;         // [rows, in]
  const T* kernel;    // [out, in]
  const T* bias;      // [out] or nullptr
  const Y* residual;  // [rows, out], gated [rows, out / 2], or nullptr; may be y
  Y* y;               // [rows, out], gated [rows, out / 2]; not x
  T* scratch;         // [LinearScratchRows(rows), out] where LinearNeedsScratch, else unused
  int64_t rows, in, out;
  Activation activation;
  bool gated;  // kernel rows are gate 0, up 0, gate 1, ...: y = activation(gate) * up + residual
  LinearPath path;
  // `kernel` was complete before the preceding GPU kernel let this one start, so it may be read
  // before WaitForDependencies (core/launch.cuh).
  bool weights_are_ready = false;
  NormedInput normed = {};
  ScaledOutput<Y> scaled = {};
};

template <typename T, typename Y>
void Linear(Stream stream, const LinearArgs<T, Y>& args);

// Floats from one row's sums of squares to the next: at the most one for 16 outputs.
constexpr int64_t LinearSquaresLine(int64_t out) { return (out + 127) / 128 * 8; }

// In how many parts a product that is not gated leaves the squares of a row's outputs, for another
// that norms them; 0 where the two cannot. It depends on sizes and on the device, and on whether
// `operands` are aligned: what the two products and the norm read and write.
template <typename T>
int64_t LinearSquareParts(LinearPath path, int64_t out, int64_t in,
                          std::initializer_list<const T*> operands);

// Whether a product may have to be kept before it is finished: Hopper's own kernel keeps none.
constexpr bool LinearNeedsScratch(LinearPath path, bool gated, bool has_activation,
                                  bool has_residual) {
  return path == LinearPath::kPrefill && (gated || (has_activation && has_residual));
}

// The rows of a kept product that are computed together.
constexpr int64_t LinearScratchRows(int64_t rows) { return rows < 512 ? rows : 512; }

// Finishes one output whose product is `sum`.
template <typename T, typename Y>
EET_HOST_DEVICE void StoreOutput(const LinearArgs<T, Y>& args, int64_t row, int64_t col,
                                 float sum) {
  const int64_t at = row * args.out + col;
  float value = Activate(args.activation, args.bias ? sum + float(args.bias[col]) : sum);
  if (args.residual) value += float(args.residual[at]);
  args.y[at] = Y(value);
}

// Finishes a gate and its neighbour.
template <typename T, typename Y>
EET_HOST_DEVICE void StoreGated(const LinearArgs<T, Y>& args, int64_t row, int64_t col, float gate,
                                float up) {
  const int64_t at = (row * args.out + col) / 2;
  if (args.bias) {
    gate += float(args.bias[col]);
    up += float(args.bias[col + 1]);
  }
  float value = Activate(args.activation, gate) * up;
  if (args.residual) value += float(args.residual[at]);
  args.y[at] = Y(value);
}

// Finishes the adjacent outputs `col`, which is even, and col + 1, if there is one.
template <typename T, typename Y>
EET_HOST_DEVICE void StorePair(const LinearArgs<T, Y>& args, int64_t row, int64_t col, float first,
                               float second) {
  if (args.gated) {
    StoreGated(args, row, col, first, second);
  } else {
    StoreOutput(args, row, col, first);
    if (col + 1 < args.out) StoreOutput(args, row, col + 1, second);
  }
}

}  // namespace eet
