// A feed-forward network:  y = down(activation(up(x))) + residual
// or, gated, down(activation(gate(x)) * up(x)) + residual with the rows of gate and up interleaved.
#pragma once

#include "ops/linear.h"

namespace eet {

template <typename T>
struct MlpArgs {
  const T* x;            // [rows, hidden]
  const T* up_kernel;    // [intermediate, hidden], gated [2 * intermediate, hidden]: gate 0, up 0,
                         // gate 1, ...
  const T* up_bias;      // [intermediate], gated [2 * intermediate], or nullptr
  const T* down_kernel;  // [hidden, intermediate]
  const T* down_bias;    // [hidden] or nullptr
  const T* residual;     // [rows, hidden] or nullptr; may be y
  T* y;                  // [rows, hidden]; may be x
  T* activated;          // [rows, intermediate]
  T* scratch;  // [LinearScratchRows(rows), 2 * intermediate] when gated on kPrefill, else unused
  int64_t rows, hidden, intermediate;
  Activation activation;
  bool gated;
  LinearPath path;
  bool weights_are_ready = false;  // as LinearArgs::weights_are_ready
  NormedInput normed = {};         // of up
  ScaledOutput<T> scaled = {};     // of down
};

template <typename T>
void Mlp(Stream stream, const MlpArgs<T>& args) {
  Linear(stream, LinearArgs<T>{.x = args.x,
                               .kernel = args.up_kernel,
                               .bias = args.up_bias,
                               .residual = nullptr,
                               .y = args.activated,
                               .scratch = args.scratch,
                               .rows = args.rows,
                               .in = args.hidden,
                               .out = args.gated ? 2 * args.intermediate : args.intermediate,
                               .activation = args.activation,
                               .gated = args.gated,
                               .path = args.path,
                               .weights_are_ready = args.weights_are_ready,
                               .normed = args.normed});
  Linear(stream, LinearArgs<T>{.x = args.activated,
                               .kernel = args.down_kernel,
                               .bias = args.down_bias,
                               .residual = args.residual,
                               .y = args.y,
                               .scratch = nullptr,
                               .rows = args.rows,
                               .in = args.intermediate,
                               .out = args.hidden,
                               .activation = Activation::kNone,
                               .gated = false,
                               .path = args.path,
                               .weights_are_ready = true,
                               .scaled = args.scaled});
}

}  // namespace eet
