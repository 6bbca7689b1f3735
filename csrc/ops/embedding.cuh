// Embedding of one token on the GPU, by some threads.
#pragma once

#include "core/vector.cuh"
#include "ops/embedding.h"

namespace eet {

// Row `index` of y becomes the embedding of token `id` at `position`, by `threads` threads of which
// this is one; kWidth elements per access.
template <int kWidth, typename T>
__device__ void EmbedToken(const EmbeddingArgs<T>& args, int64_t index, int32_t id,
                           int32_t position, int thread, int threads) {
  struct alignas(kWidth * sizeof(T)) Pack {
    T values[kWidth];
  };
  const auto row = [&](const T* table, int64_t row, int64_t rows) {
    return reinterpret_cast<const Pack*>(NearestRow(table, row, rows, args.hidden));
  };
  const Pack* entry = row(args.table, id, args.vocab);
  const Pack* offset =
      args.position_table ? row(args.position_table, position, args.max_positions) : nullptr;
  Pack* y = reinterpret_cast<Pack*>(args.y + index * args.hidden);
  for (int64_t i = thread; i < args.hidden / kWidth; i += threads) {
    const Pack pack = entry[i], added = offset ? offset[i] : Pack{};
    Pack out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float scaled = float(pack.values[j]) * args.scale;
      out.values[j] = T(offset ? scaled + float(added.values[j]) : scaled);
    }
    y[i] = out;
  }
}

// Whether rows can be moved in vectors; an absent position table, a null pointer, is aligned.
template <typename T>
bool InVectors(const EmbeddingArgs<T>& args) {
  return args.hidden % Vector<T>::kSize == 0 && IsAligned16(args.table) &&
         IsAligned16(args.position_table) && IsAligned16(args.y);
}

}  // namespace eet
