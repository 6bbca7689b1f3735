// Linear for many rows on the host. A block's rows of x stay in L2, four kernel rows in L1, both in
// the order in which the inner loop reads them; sums wait in memory while the
// columns advance.
#include <algorithm>

#include "core/dot_tile.h"
#include "core/parallel.h"
#include "core/round.h"
#include "ops/linear_cpu.h"
#include "ops/linear_finish_cpu.h"

namespace eet {

constexpr int kBlockRows = 96;     // multiples of all kTileRows
constexpr int kBlockOuts = 256;    // at most; x is brought to order once per block
constexpr int kFewestOuts = 64;    // so that all threads have work
constexpr int kDepthBytes = 4096;  // columns at a time

template <typename F>
struct LinearBlock {
  static constexpr int kStep = Factors<F>::kSize;
  static constexpr int kDepth = kDepthBytes / sizeof(F);

  alignas(64) F x[kBlockRows / kTileRows][kDepth / kStep][kTileRows][kStep];
  alignas(64) F kernel[kDepth / kStep][kTileOuts][kStep];
  TileSums<kTileRows> sums[kBlockOuts / kTileOuts][kBlockRows / kTileRows];
  float products[kBlockRows][kBlockOuts];
};

// The outputs [col, col + outs) of the rows [row, row + kBlockRows). Rows and outputs beyond the
// last take part in the products with what is left in the block, and are not stored.
template <typename T, typename Y>
class BlockProduct {
 public:
  using F = Factor<T>;
  using Block = LinearBlock<F>;

  BlockProduct(const LinearArgs<T, Y>& args, int64_t row, int64_t col, int64_t outs, Block& block)
      : args_(args),
        row_(row),
        col_(col),
        rows_(std::min<int64_t>(kBlockRows, args.rows - row)),
        outs_(std::min(outs, args.out - col)),
        block_(block) {}

  void Run() {
    int64_t k = 0;
    do {
      AddColumns(k, std::min<int64_t>(Block::kDepth, args_.in - k));
      k += Block::kDepth;
    } while (k < args_.in);
    for (int64_t i = 0; i < rows_; ++i) Finish(args_, row_ + i, col_, outs_, block_.products[i]);
  }

 private:
  // Adds the products of the columns [k, k + size) to the sums.
  void AddColumns(int64_t k, int64_t size) {
    for (int64_t i = 0; i < rows_; ++i) {
      CopyFactors(args_.x + (row_ + i) * args_.in + k, size, kTileRows * Block::kStep,
                  block_.x[i / kTileRows][0][i % kTileRows]);
    }
    for (int64_t out = 0; out < outs_; out += kTileOuts) {
      for (int64_t i = 0; i < std::min<int64_t>(kTileOuts, outs_ - out); ++i) {
        CopyFactors(args_.kernel + (col_ + out + i) * args_.in + k, size, kTileOuts * Block::kStep,
                    block_.kernel[0][i]);
      }
      MultiplyOuts(out, k, size);
    }
  }

  // Four outputs of all rows.
  void MultiplyOuts(int64_t out, int64_t k, int64_t size) {
    const int64_t steps = RoundUp(size, Block::kStep) / Block::kStep;
    const bool last = k + size == args_.in;
    for (int64_t tile = 0; tile * kTileRows < rows_; ++tile) {
      auto& total = block_.sums[out / kTileOuts][tile];
      TileSums<kTileRows> sums = {};
      if (k > 0) CopySums(total, sums);
      MultiplyTile(&block_.x[tile][0][0][0], &block_.kernel[0][0][0], steps, sums);
      if (last) {
        StoreSums<kTileRows>(sums, &block_.products[tile * kTileRows][out], kBlockOuts);
      } else {
        CopySums(sums, total);
      }
    }
  }

  // One by one, so that the compiler keeps them in registers.
  static void CopySums(const TileSums<kTileRows>& from, TileSums<kTileRows>& to) {
#pragma GCC unroll 6
    for (int row = 0; row < kTileRows; ++row) {
#pragma GCC unroll 4
      for (int out = 0; out < kTileOuts; ++out) to[row][out] = from[row][out];
    }
  }

  static void MultiplyTile(const F* x, const F* kernel, int64_t steps, TileSums<kTileRows>& sums) {
    for (int64_t step = 0; step < steps; ++step) {
      Factors<F> factors[kTileOuts];
#pragma GCC unroll 4
      for (int i = 0; i < kTileOuts; ++i) factors[i] = LoadFactors(kernel + i * Block::kStep);
      AddProducts<kTileRows>(x, Block::kStep, factors, sums);
      x += kTileRows * Block::kStep;
      kernel += kTileOuts * Block::kStep;
    }
  }

  const LinearArgs<T, Y>& args_;
  const int64_t row_, col_, rows_, outs_;
  Block& block_;
};

template <typename T, typename Y>
void LinearManyRows(const Stream& stream, const LinearArgs<T, Y>& args) {
  const int64_t row_blocks = CeilDiv(args.rows, kBlockRows);
  const int64_t share = args.out * row_blocks / (4 * stream.num_threads);
  const int64_t outs = std::clamp<int64_t>(RoundUp(share, kTileOuts), kFewestOuts, kBlockOuts);
  const int64_t out_blocks = CeilDiv(args.out, outs);
  // Neighbours in time share their part of the kernel, which is the larger one.
  ParallelFor(stream, row_blocks * out_blocks, [&](int64_t index) {
    static thread_local LinearBlock<Factor<T>> block;
    BlockProduct<T, Y>(args, index % row_blocks * kBlockRows, index / row_blocks * outs, outs,
                       block)
        .Run();
  });
}

template void LinearManyRows(const Stream&, const LinearArgs<float>&);
template void LinearManyRows(const Stream&, const LinearArgs<bfloat16>&);
template void LinearManyRows(const Stream&, const LinearArgs<float16>&);
template void LinearManyRows(const Stream&, const LinearArgs<bfloat16, float>&);
template void LinearManyRows(const Stream&, const LinearArgs<float16, float>&);

}  // namespace eet
