// Attention on the host: blocks of queries with all heads of a KV head in parallel, keys and values
// converted tile by tile.
#include "core/multiply_add.h"
#include "core/parallel.h"
#include "core/round.h"
#include "ops/attention_tile_cpu.h"

namespace eet {

constexpr int64_t kBlockRows = 128;  // of queries times heads, enough to pay for a tile of keys

template <typename T>
class AttentionTask {
 public:
  // The queries [token, token + count) and the heads of `kv_head`.
  AttentionTask(const AttentionArgs<T>& args, int64_t token, int64_t count, int64_t kv_head)
      : args_(args),
        token_(token),
        count_(count),
        kv_head_(kv_head),
        group_(args.heads / args.kv_heads),
        dim_(RoundUp(args.head_dim, kLanes)),
        rows_(count * group_),
        q_(rows_.size() * dim_),
        out_(rows_.size() * dim_),
        scores_(rows_.size() * kTileKeys),
        keys_(dim_ * kTileKeys),
        values_(kTileKeys * dim_) {
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int64_t head = kv_head_ * group_ + i % group_;
      rows_[i].query = QueryOf(args_, token_ + i / group_);
      rows_[i].slope = args_.alibi_slopes ? args_.alibi_slopes[head] : 0.0f;
      const T* q = args_.q + HeadOffset(i);
      Widen(q, q_.data() + i * dim_);
    }
  }

  void Run() {
    for (int64_t first = 0; first < count_;) {
      int64_t last = first;
      const int row = rows_[first * group_].query.row;
      while (last < count_ && rows_[last * group_].query.row == row) ++last;
      AttendSegment(first * group_, last * group_);
      first = last;
    }
    for (size_t i = 0; i < rows_.size(); ++i) {
      const float normalizer = rows_[i].softmax.Normalizer();
      T* out = args_.out + HeadOffset(i);
      ForEachVector(args_.head_dim, [&](int64_t col, auto count) {
        Store(out + col, Load(out_.data() + i * dim_ + col) * normalizer, count);
      });
    }
  }

 private:
  // Where row i is in q and out.
  int64_t HeadOffset(int64_t i) const {
    return ((token_ + i / group_) * args_.heads + kv_head_ * group_ + i % group_) * args_.head_dim;
  }

  // One head's elements as floats; `to` has room for whole registers.
  void Widen(const T* from, float* to) const {
    ForEachVector(args_.head_dim,
                  [&](int64_t col, auto count) { Store(to + col, Load(from + col, count)); });
  }

  // Rows [first, last) have their queries in one batch row.
  void AttendSegment(int64_t first, int64_t last) {
    KeyRange keys{0, 0};
    for (int64_t i = first; i < last; ++i) keys = Union(keys, rows_[i].query.keys);
    if (keys.empty()) return;
    const int batch_row = rows_[first].query.row;
    for (int key = keys.begin / kTileKeys * kTileKeys; key < keys.end; key += kTileKeys) {
      ReadTile(batch_row, key, keys);
      AttendTile(first, last, key);
    }
  }

  // Converts the tile at `tile_key`, keys transposed; zeros for those that nobody sees.
  void ReadTile(int batch_row, int tile_key, KeyRange seen) {
    std::fill(keys_.begin(), keys_.end(), 0.0f);
    std::fill(values_.begin(), values_.end(), 0.0f);
    for (int i = 0; i < kTileKeys; ++i) {
      if (!seen.Contains(tile_key + i)) continue;
      const int64_t offset = KeyOffset(args_, batch_row, kv_head_, tile_key + i);
      const T* k = args_.k + offset;
      for (int64_t col = 0; col < args_.head_dim; ++col) keys_[col * kTileKeys + i] = float(k[col]);
      Widen(args_.v + offset, values_.data() + i * dim_);
    }
  }

  void AttendTile(int64_t first, int64_t last, int tile_key) {
    float* scores = scores_.data() + first * kTileKeys;
    float* out = out_.data() + first * dim_;
    std::fill(scores, scores + (last - first) * kTileKeys, 0.0f);
    MultiplyAdd(q_.data() + first * dim_, dim_, keys_.data(), kTileKeys, scores, kTileKeys,
                last - first, args_.head_dim, kTileKeys);
    for (int64_t i = first; i < last; ++i) {
      ToWeights(rows_[i], args_.scale, args_.soft_cap, tile_key, scores_.data() + i * kTileKeys,
                out_.data() + i * dim_, dim_);
    }
    MultiplyAdd(scores, kTileKeys, values_.data(), dim_, out, dim_, last - first, kTileKeys, dim_);
  }

  const AttentionArgs<T>& args_;
  const int64_t token_, count_, kv_head_, group_, dim_;
  std::vector<QueryRow> rows_;  // [count, group]
  std::vector<float> q_, out_;  // [count, group, dim]
  std::vector<float> scores_;   // [count, group, kTileKeys]
  std::vector<float> keys_;     // [dim, kTileKeys]
  std::vector<float> values_;   // [kTileKeys, dim]
};

template <typename T>
void Attention(Stream stream, const AttentionArgs<T>& args) {
  if (args.tokens == 0 || args.heads == 0) return;
  const int64_t queries = std::max<int64_t>(1, kBlockRows / (args.heads / args.kv_heads));
  const int64_t blocks = CeilDiv(args.tokens, queries);
  ParallelFor(stream, blocks * args.kv_heads, [&](int64_t index) {
    // From the last block, which sees most keys.
    const int64_t token = (blocks - 1 - index / args.kv_heads) * queries;
    AttentionTask<T>(args, token, std::min(queries, args.tokens - token), index % args.kv_heads)
        .Run();
  });
}

template void Attention(Stream, const AttentionArgs<float>&);
template void Attention(Stream, const AttentionArgs<bfloat16>&);
template void Attention(Stream, const AttentionArgs<float16>&);

}  // namespace eet
