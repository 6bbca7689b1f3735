// The attention half of a layer:  y = o(attention(rotary(qkv(norm(x))))) + bias + residual
// with keys and values appended to the paged cache first, and every activation in the workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/workspace.h"
#include "ops/attention.h"
#include "ops/decode_attention.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/qkv_append.h"
#include "ops/rotary_append.h"

namespace eet {

struct AttentionSizes {
  int64_t tokens, hidden, heads, kv_heads, head_dim, rotary_dim;
  int64_t batch, pages, page_size, max_pages;

  int64_t group() const { return heads / kv_heads; }
  int64_t q_size() const { return heads * head_dim; }
  int64_t qkv_size() const { return (heads + 2 * kv_heads) * head_dim; }
};

template <typename T>
struct AttentionBlockArgs {
  const T* x;         // [tokens, hidden]
  const T* residual;  // [tokens, hidden] or nullptr
  T* y;               // [tokens, hidden]; may be x or residual
  NormWeights<T> norm;
  const T* qkv_kernel;  // [qkv_size, hidden], grouped by KV head, rotary pairs adjacent
  const T* qkv_bias;    // [qkv_size] or nullptr
  const T* q_norm;      // [head_dim] or nullptr
  const T* k_norm;      // [head_dim] or nullptr
  const T* o_kernel;    // [hidden, q_size]
  const T* o_bias;      // [hidden] or nullptr
  T* k;                 // [pages, kv_heads, page_size, head_dim], of this layer
  T* v;
  const int32_t* page_table;  // [batch, max_pages]
  const int32_t* rows;        // [tokens]
  const int32_t* positions;   // [tokens]
  const float* rotary_table;  // [tokens, rotary_dim / 2, 2] or nullptr
  const float* alibi_slopes;  // [heads] or nullptr
  AttentionSizes sizes;
  float scale, soft_cap;           // of the scores; soft_cap 0: none
  int64_t window;                  // 0: none
  LinearPath path;                 // kDecode: one token per row
  bool weights_are_ready = false;  // as LinearArgs has it, both products
  NormedInput normed = {};         // with squares, x is times the norm's scale already
  ScaledOutput<T> scaled = {};     // for a norm of y
};

// Activations of the block. Pieces whose lives do not meet share memory: q takes the place of the
// normed input, attention's output that of qkv.
template <typename T>
struct AttentionActivations {
  T* normed;       // [tokens, hidden]
  T* q;            // [tokens, heads, head_dim], at normed
  T* qkv;          // [tokens, qkv_size]
  T* attended;     // [tokens, heads, head_dim], at qkv
  float* scratch;  // of decode attention

  AttentionActivations(Workspace& workspace, const AttentionSizes& sizes, LinearPath path) {
    normed = q = workspace.Take<T>(sizes.tokens * std::max(sizes.hidden, sizes.q_size()));
    qkv = attended = workspace.Take<T>(sizes.tokens * sizes.qkv_size());
    const bool decode = path == LinearPath::kDecode;
    scratch = workspace.Take<float>(
        decode ? DecodeAttentionScratch(sizes.tokens, sizes.heads, sizes.head_dim,
                                        sizes.max_pages * sizes.page_size)
               : 0);
  }
};

template <typename T>
void Attend(Stream stream, const AttentionBlockArgs<T>& args, const AttentionActivations<T>& at) {
  const AttentionSizes& sizes = args.sizes;
  if (args.path == LinearPath::kDecode) {
    DecodeAttention(stream, DecodeAttentionArgs<T>{.q = at.q,
                                                   .k = args.k,
                                                   .v = args.v,
                                                   .page_table = args.page_table,
                                                   .rows = args.rows,
                                                   .positions = args.positions,
                                                   .alibi_slopes = args.alibi_slopes,
                                                   .out = at.attended,
                                                   .scratch = at.scratch,
                                                   .tokens = sizes.tokens,
                                                   .batch = sizes.batch,
                                                   .heads = sizes.heads,
                                                   .kv_heads = sizes.kv_heads,
                                                   .head_dim = sizes.head_dim,
                                                   .pages = sizes.pages,
                                                   .page_size = sizes.page_size,
                                                   .max_pages = sizes.max_pages,
                                                   .scale = args.scale,
                                                   .soft_cap = args.soft_cap,
                                                   .window = args.window,
                                                   .cache_is_ready = true});
    return;
  }
  Attention(stream, AttentionArgs<T>{.q = at.q,
                                     .k = args.k,
                                     .v = args.v,
                                     .page_table = args.page_table,
                                     .rows = args.rows,
                                     .positions = args.positions,
                                     .lengths = nullptr,
                                     .alibi_slopes = args.alibi_slopes,
                                     .out = at.attended,
                                     .tokens = sizes.tokens,
                                     .batch = sizes.batch,
                                     .query_len = 0,
                                     .key_len = 0,
                                     .heads = sizes.heads,
                                     .kv_heads = sizes.kv_heads,
                                     .head_dim = sizes.head_dim,
                                     .pages = sizes.pages,
                                     .page_size = sizes.page_size,
                                     .max_pages = sizes.max_pages,
                                     .scale = args.scale,
                                     .soft_cap = args.soft_cap,
                                     .window = args.window,
                                     .causal = true,
                                     .tokens_are_ready = true});
}

// Queries to at.q, keys and values to the cache. A kernel that does it all reads the normed input
// until the last query is written, so that queries and attention's output change places.
template <typename T>
void ProjectHeads(Stream stream, const AttentionBlockArgs<T>& args, AttentionActivations<T>& at) {
  const AttentionSizes& sizes = args.sizes;
  const LinearArgs<T> product{.x = args.normed.squares ? args.x : at.normed,
                              .kernel = args.qkv_kernel,
                              .bias = args.qkv_bias,
                              .residual = nullptr,
                              .y = at.qkv,
                              .scratch = nullptr,
                              .rows = sizes.tokens,
                              .in = sizes.hidden,
                              .out = sizes.qkv_size(),
                              .activation = Activation::kNone,
                              .gated = false,
                              .path = args.path,
                              .weights_are_ready = true,
                              .normed = args.normed};
  RotaryAppendArgs<T> append{.qkv = at.qkv,
                             .q_norm = args.q_norm,
                             .k_norm = args.k_norm,
                             .rotary_table = args.rotary_table,
                             .page_table = args.page_table,
                             .rows = args.rows,
                             .positions = args.positions,
                             .q = at.attended,
                             .k = args.k,
                             .v = args.v,
                             .tokens = sizes.tokens,
                             .batch = sizes.batch,
                             .kv_heads = sizes.kv_heads,
                             .group = sizes.group(),
                             .head_dim = sizes.head_dim,
                             .rotary_dim = sizes.rotary_dim,
                             .pages = sizes.pages,
                             .page_size = sizes.page_size,
                             .max_pages = sizes.max_pages,
                             .eps = args.norm.eps};
  if (QkvAppend(stream, product, append)) {
    std::swap(at.q, at.attended);
    return;
  }
  append.q = at.q;
  Linear(stream, product);
  RotaryAppend(stream, append);
}

template <typename T>
void AttentionBlock(Stream stream, const AttentionBlockArgs<T>& args, Workspace workspace) {
  const AttentionSizes& sizes = args.sizes;
  AttentionActivations<T> at(workspace, sizes, args.path);
  if (!args.normed.squares) {
    Norm(stream, args.norm, args.x, at.normed, sizes.tokens, sizes.hidden, args.weights_are_ready);
  }
  ProjectHeads(stream, args, at);
  Attend(stream, args, at);
  Linear(stream, LinearArgs<T>{.x = at.attended,
                               .kernel = args.o_kernel,
                               .bias = args.o_bias,
                               .residual = args.residual,
                               .y = args.y,
                               .scratch = nullptr,
                               .rows = sizes.tokens,
                               .in = sizes.q_size(),
                               .out = sizes.hidden,
                               .activation = Activation::kNone,
                               .gated = false,
                               .path = args.path,
                               .weights_are_ready = true,
                               .scaled = args.scaled});
}

}  // namespace eet
