// A decoder layer: attention block and feed-forward block around one residual stream,
//   sequential:  h = x + attention(x);  y = h + mlp(h)
//   parallel:    y = x + attention(x) + mlp(x)
#pragma once

#include <algorithm>

#include "ops/attention_block.h"
#include "ops/mlp_block.h"

namespace eet {

// What products leave for those behind a norm, at the same place of the workspace in all layers.
template <typename T>
struct NormPieces {
  T* scaled;       // [tokens, hidden]
  float* squares;  // [tokens, LinearSquaresLine(hidden)]

  NormPieces(Workspace& workspace, const MlpSizes& sizes, LinearPath path) {
    const int64_t tokens = path == LinearPath::kDecode && sizeof(T) == 2 ? sizes.tokens : 0;
    scaled = workspace.Take<T>(tokens * sizes.hidden);
    squares = workspace.Take<float>(tokens * LinearSquaresLine(sizes.hidden));
  }
};

// The norm in the middle of a layer, where the products around it can do its work.
template <typename T>
void FuseNorm(AttentionBlockArgs<T>& attention, MlpBlockArgs<T>& mlp, const NormPieces<T>& pieces) {
  const AttentionSizes& sizes = attention.sizes;
  if (mlp.norm.kind != NormKind::kRms) return;
  const int64_t parts =
      LinearSquareParts<T>(mlp.path, sizes.hidden, sizes.q_size(),
                           {attention.o_kernel, attention.o_bias, attention.residual, attention.y,
                            mlp.norm.scale, pieces.scaled, mlp.up_kernel});
  if (parts == 0) return;
  attention.scaled = {mlp.norm.scale, pieces.scaled, pieces.squares};
  mlp.x = pieces.scaled;
  mlp.normed = {pieces.squares, parts, mlp.norm.eps};
}

// Runs the layer in place: attention.x, its y and both residuals are the residual stream.
template <typename T>
void DecoderLayer(Stream stream, AttentionBlockArgs<T> attention, MlpBlockArgs<T> mlp,
                  bool parallel_residual, Workspace workspace) {
  T* x = attention.y;
  if (!parallel_residual) {
    attention.residual = mlp.x = mlp.residual = mlp.y = x;
    mlp.kernels_are_ready = true;  // the attention block has waited for all kernels in front
    FuseNorm(attention, mlp, NormPieces<T>(workspace, mlp.sizes, mlp.path));
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
  } else {
    NormPieces<T>(first, mlp, path);
    NormPieces<T>(second, mlp, path);
  }
  AttentionActivations<T>(first, attention, path);
  MlpActivations<T>(second, mlp, path);
  return std::max(first.used(), second.used());
}

}  // namespace eet
