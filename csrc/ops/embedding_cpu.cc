// Token embedding on the host: tokens in parallel.
#include "core/parallel.h"
#include "ops/embedding.h"

namespace eet {

template <typename T>
static void EmbedToken(const EmbeddingArgs<T>& args, int64_t i) {
  const T* entry = NearestRow(args.table, args.tokens[i], args.vocab, args.hidden);
  const T* position = PositionRow(args, i);
  T* y = args.y + i * args.hidden;
  for (int64_t col = 0; col < args.hidden; ++col) {
    const float scaled = float(entry[col]) * args.scale;
    y[col] = T(position ? scaled + float(position[col]) : scaled);
  }
}

template <typename T>
void Embedding(Stream stream, const EmbeddingArgs<T>& args) {
  const int64_t grain = 1 + (1 << 14) / (args.hidden + 1);
  ParallelRanges(stream, args.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) EmbedToken(args, i);
  });
}

template void Embedding(Stream, const EmbeddingArgs<float>&);
template void Embedding(Stream, const EmbeddingArgs<bfloat16>&);
template void Embedding(Stream, const EmbeddingArgs<float16>&);

}  // namespace eet
