// Token embedding:  y = table[token] * scale + position_table[position]
// Ids outside of a table take its first or last row.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct EmbeddingArgs {
  const int32_t* tokens;     // [num_tokens]
  const T* table;            // [vocab, hidden]
  const int32_t* positions;  // [num_tokens] or nullptr
  const T* position_table;   // [max_positions, hidden] or nullptr
  T* y;                      // [num_tokens, hidden]
  int64_t num_tokens, vocab, max_positions, hidden;
  float scale;
};

template <typename T>
void Embedding(Stream stream, const EmbeddingArgs<T>& args);

// Row `index` of a table [rows, cols], or the nearest one there is.
template <typename T>
EET_HOST_DEVICE const T* NearestRow(const T* table, int64_t index, int64_t rows, int64_t cols) {
  const int64_t row = index < 0 ? 0 : index < rows ? index : rows - 1;
  return table + row * cols;
}

// The row of token i's position, or nullptr when positions are not embedded.
template <typename T>
EET_HOST_DEVICE const T* PositionRow(const EmbeddingArgs<T>& args, int64_t i) {
  if (!args.position_table) return nullptr;
  return NearestRow(args.position_table, args.positions[i], args.max_positions, args.hidden);
}

}  // namespace eet
