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

// Where a layer stands in a row of layers, each with what the one before leaves as its input.
template <typename T>
struct LayerPlace {
  bool follows;         // the call in front was that of the layer before, with this workspace
  const T* next_scale;  // of the next layer's first norm; nullptr: this is the last layer
};

// Has a block read what the product in front leaves for it.
template <typename T, class Block>
void TakeNormed(Block& block, const NormPieces<T>& pieces, int64_t parts) {
  block.x = pieces.scaled;
  block.normed = {.squares = pieces.squares, .parts = parts, .eps = block.norm.eps};
}

// The norm in the middle of a layer, where the products around it can do its work.
template <typename T>
void FuseMiddleNorm(AttentionBlockArgs<T>& attention, MlpBlockArgs<T>& mlp,
                    const NormPieces<T>& pieces) {
  const T* scale = mlp.norm.scale;
  const int64_t parts =
      LinearSquareParts<T>(mlp.path, mlp.sizes.hidden, attention.sizes.q_size(),
                           {attention.o_kernel, attention.o_bias, attention.residual, attention.y,
                            scale, pieces.scaled, mlp.up_kernel});
  if (parts == 0) return;
  attention.scaled = {.scale = scale, .scaled = pieces.scaled, .squares = pieces.squares};
  TakeNormed(mlp, pieces, parts);
}

// The norm between two layers, likewise. Both find the same: their sizes are the same, and so are
// the arrays that their weights are slices of.
template <typename T>
void FuseNormBetween(AttentionBlockArgs<T>& attention, MlpBlockArgs<T>& mlp,
                     const LayerPlace<T>& place, const NormPieces<T>& pieces) {
  const int64_t parts =
      LinearSquareParts<T>(mlp.path, mlp.sizes.hidden, mlp.sizes.intermediate,
                           {mlp.down_kernel, mlp.down_bias, mlp.residual, mlp.y,
                            attention.norm.scale, pieces.scaled, attention.qkv_kernel});
  if (parts == 0) return;
  if (place.follows) TakeNormed(attention, pieces, parts);
  if (!place.next_scale) return;
  mlp.scaled = {.scale = place.next_scale, .scaled = pieces.scaled, .squares = pieces.squares};
}

// Runs the layer in place: attention.x, its y and both residuals are the residual stream.
template <typename T>
void DecoderLayer(Stream stream, AttentionBlockArgs<T> attention, MlpBlockArgs<T> mlp,
                  bool parallel_residual, const LayerPlace<T>& place, Workspace workspace) {
  T* x = attention.y;
  if (!parallel_residual) {
    attention.residual = mlp.x = mlp.residual = mlp.y = x;
    mlp.weights_are_ready = true;  // the attention block waits for all preceding kernels
    const NormPieces<T> pieces(workspace, mlp.sizes, mlp.path);
    if (mlp.norm.kind == NormKind::kRms) {
      FuseMiddleNorm(attention, mlp, pieces);
      FuseNormBetween(attention, mlp, place, pieces);
    }
    AttentionBlock(stream, attention, workspace);
    MlpBlock(stream, mlp, workspace);
    return;
  }
  // The feed-forward goes first, into the workspace: x is needed unchanged by both norms.
  T* sum = workspace.Take<T>(mlp.sizes.tokens * mlp.sizes.hidden);
  mlp.x = mlp.residual = x;
  mlp.y = sum;
  attention.residual = sum;
  attention.weights_are_ready = true;  // after the feed-forward block
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
