// A decoder layer: attention block and feed-forward block around one residual stream,
//   sequential:  h = x + attention(x);  y = h + mlp(h)
//   parallel:    y = x + attention(x) + mlp(x)
#pragma once

#include <algorithm>

#include "ops/attention_block.h"
#include "ops/mlp_block.h"

namespace eet {

// Runs the layer in place: attention.x, its y and both residuals are the residual stream.
template <typename T>
void DecoderLayer(Stream stream, AttentionBlockArgs<T> attention, MlpBlockArgs<T> mlp,
                  bool parallel_residual, Workspace workspace) {
  T* x = attention.y;
  if (!parallel_residual) {
    attention.residual = mlp.x = mlp.residual = mlp.y = x;
    mlp.kernels_are_ready = true;  // the attention block has waited for all kernels in front
    AttentionBlock(stream, attention, workspace);
    MlpBlock(stream, mlp, workspace);
    return;
  }
  // The feed-forward goes first, into the workspace: x is needed unchanged by both norms.
  T* sum = workspace.Take<T>(mlp.sizes.tokens * mlp.sizes.hidden);
  mlp.x = mlp.residual = x;
  mlp.y = sum;
  attention.residual = sum;
  attention.kernels_are_ready = true;  // after the feed-forward block
  MlpBlock(stream, mlp, workspace);
  AttentionBlock(stream, attention, workspace);
}

// Bytes of workspace that a layer needs.
template <typename T>
int64_t DecoderLayerWorkspace(const AttentionSizes& attention, const MlpSizes& mlp,
                              bool parallel_residual, LinearPath path) {
  Workspace first, second;
  if (parallel_residual) {
    first.Take<T>(mlp.tokens * mlp.hidden);
    second.Take<T>(mlp.tokens * mlp.hidden);
  }
  AttentionActivations<T>(first, attention, path);
  MlpActivations<T>(second, mlp, path);
  return std::max(first.used(), second.used());
}

}  // namespace eet
