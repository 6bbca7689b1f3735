// The feed-forward half of a layer:  y = down(activation(up(norm(x)))) + bias + residual
// or, gated, with activation(gate(.)) * up(.) inside; every activation is in the workspace.
#pragma once

#include <cstdint>

#include "core/workspace.h"
#include "ops/mlp.h"
#include "ops/norm.h"

namespace eet {

struct MlpSizes {
  int64_t tokens, hidden, intermediate;
  bool gated;

  int64_t up_size() const { return gated ? 2 * intermediate : intermediate; }
};

template <typename T>
struct MlpBlockArgs {
  const T* x;         // [tokens, hidden]
  const T* residual;  // [tokens, hidden] or nullptr
  T* y;               // [tokens, hidden]; may be x or residual
  NormWeights<T> norm;
  const T* up_kernel;    // [up_size, hidden], rows of gate and up interleaved when gated
  const T* up_bias;      // [up_size] or nullptr
  const T* down_kernel;  // [hidden, intermediate]
  const T* down_bias;    // [hidden] or nullptr
  MlpSizes sizes;
  Activation activation;
  LinearPath path;
  bool weights_are_ready = false;  // as LinearArgs has it, both products
  NormedInput normed = {};         // with squares, x is times the norm's scale already
  ScaledOutput<T> scaled = {};     // for a norm of y
};

template <typename T>
struct MlpActivations {
  T* normed;     // [tokens, hidden]
  T* activated;  // [tokens, intermediate]
  T* scratch;    // [LinearScratchRows(tokens), up_size], of a gated product on kPrefill

  MlpActivations(Workspace& workspace, const MlpSizes& sizes, LinearPath path) {
    const bool has_scratch = LinearNeedsScratch(path, sizes.gated, true, false);
    normed = workspace.Take<T>(sizes.tokens * sizes.hidden);
    activated = workspace.Take<T>(sizes.tokens * sizes.intermediate);
    const int64_t rows = has_scratch ? LinearScratchRows(sizes.tokens) : 0;
    scratch = workspace.Take<T>(rows * sizes.up_size());
  }
};

template <typename T>
void MlpBlock(Stream stream, const MlpBlockArgs<T>& args, Workspace workspace) {
  const MlpSizes& sizes = args.sizes;
  const MlpActivations<T> at(workspace, sizes, args.path);
  if (!args.normed.squares) {
    Norm(stream, args.norm, args.x, at.normed, sizes.tokens, sizes.hidden, args.weights_are_ready);
  }
  Mlp(stream, MlpArgs<T>{.x = args.normed.squares ? args.x : at.normed,
                         .up_kernel = args.up_kernel,
                         .up_bias = args.up_bias,
                         .down_kernel = args.down_kernel,
                         .down_bias = args.down_bias,
                         .residual = args.residual,
                         .y = args.y,
                         .activated = at.activated,
                         .scratch = at.scratch,
                         .rows = sizes.tokens,
                         .hidden = sizes.hidden,
                         .intermediate = sizes.intermediate,
                         .activation = args.activation,
                         .gated = sizes.gated,
                         .path = args.path,
                         .weights_are_ready = true,
                         .normed = args.normed,
                         .scaled = args.scaled});
}

}  // namespace eet
