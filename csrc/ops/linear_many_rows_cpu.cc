// Linear for many rows on the host. A block's rows of x stay in the second cache, sixteen kernel
// rows in the first; sums wait in memory while the columns advance.
#include "core/parallel.h"
#include "ops/linear_cpu.h"
#include "ops/linear_tile.h"

namespace eet {

constexpr int kBlockRows = 64;
constexpr int kBlockOuts = 64;
constexpr int kPanelOuts = 16;
constexpr int kDepth = 256;  // columns at a time

struct LinearBlock {
  alignas(64) float x[kBlockRows][kDepth];
  alignas(64) float kernel[kPanelOuts][kDepth];
  Floats sums[kBlockOuts / kTileOuts][kBlockRows][kTileOuts];
};

// Adds `size` columns of a panel, whose first output is `out` within the block, to the sums.
static void MultiplyPanel(LinearBlock& block, int64_t out, int64_t rows, int64_t size) {
  for (int64_t row = 0; row < rows; row += kTileRows) {
    for (int i = 0; i < kPanelOuts; i += kTileOuts) {
      const float* const kernel[] = {block.kernel[i], block.kernel[i + 1], block.kernel[i + 2],
                                     block.kernel[i + 3]};
      auto& total = block.sums[(out + i) / kTileOuts];
      Floats sums[kTileRows][kTileOuts];
      std::memcpy(sums, total[row], sizeof(sums));
      MultiplyTile<kTileRows>(block.x[row], kDepth, kernel, size, sums);
      std::memcpy(total[row], sums, sizeof(sums));
    }
  }
}

template <typename T, typename Y>
static void AddColumns(LinearBlock& block, const LinearArgs<T, Y>& args, int64_t row, int64_t col,
                       int64_t rows, int64_t outs, int64_t k) {
  const int64_t size = std::min<int64_t>(kDepth, args.in - k);
  for (int64_t i = 0; i < rows; ++i) Unpack(args.x + (row + i) * args.in + k, size, block.x[i]);
  for (int64_t out = 0; out < outs; out += kPanelOuts) {
    for (int64_t i = 0; i < std::min<int64_t>(kPanelOuts, outs - out); ++i) {
      Unpack(args.kernel + (col + out + i) * args.in + k, size, block.kernel[i]);
    }
    MultiplyPanel(block, out, rows, RoundUp(size, kLanes));
  }
}

// The outputs [col, col + kBlockOuts) of the rows [row, row + kBlockRows). Rows and outputs beyond
// the last take part in the products with what is left in the block, and are not stored.
template <typename T, typename Y>
static void MultiplyBlock(const LinearArgs<T, Y>& args, int64_t row, int64_t col) {
  static thread_local LinearBlock block;
  const int64_t rows = std::min<int64_t>(kBlockRows, args.rows - row);
  const int64_t outs = std::min<int64_t>(kBlockOuts, args.out - col);
  for (auto& sums : block.sums)
    std::fill(&sums[0][0], &sums[0][0] + kBlockRows * kTileOuts, Floats{});
  for (int64_t k = 0; k < args.in; k += kDepth) AddColumns(block, args, row, col, rows, outs, k);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t out = 0; out < outs; out += kTileOuts) {
      StoreTile(args, row + i, col + out, block.sums[out / kTileOuts][i]);
    }
  }
}

template <typename T, typename Y>
void LinearManyRows(const Stream& stream, const LinearArgs<T, Y>& args) {
  const int64_t row_blocks = (args.rows + kBlockRows - 1) / kBlockRows;
  const int64_t out_blocks = (args.out + kBlockOuts - 1) / kBlockOuts;
  // Neighbours in time share their part of the kernel, which is the larger one.
  ParallelFor(stream, row_blocks * out_blocks, [&](int64_t block) {
    MultiplyBlock(args, block % row_blocks * kBlockRows, block / row_blocks * kBlockOuts);
  });
}

template void LinearManyRows(const Stream&, const LinearArgs<float>&);
template void LinearManyRows(const Stream&, const LinearArgs<bfloat16>&);
template void LinearManyRows(const Stream&, const LinearArgs<float16>&);
template void LinearManyRows(const Stream&, const LinearArgs<bfloat16, float>&);
template void LinearManyRows(const Stream&, const LinearArgs<float16, float>&);

}  // namespace eet
