// Which kind of row serves a tensor best, and the shape of its grid.
#pragma once

#include <algorithm>

#include "core/launch.cuh"
#include "core/round.h"
#include "core/row.cuh"
#include "core/streamed_row.cuh"

namespace eet {

// Calls launch.operator()<Row>(shape) with a block for each row.
template <class Row, typename F>
void DispatchBlockPerRow(int64_t rows, int64_t threads, const F& launch) {
  threads = std::min<int64_t>(RoundUp(threads, kWarpSize), kRowThreads);
  launch.template operator()<Row>(
      LaunchShape{.grid = dim3(unsigned(rows)), .block = dim3(unsigned(threads))});
}

// The same with a cluster for each row, of which LaunchRows keeps as many as run at a time.
template <typename T, int kBlocks, typename F>
void DispatchStreamed(int64_t rows, const F& launch) {
  using Row = StreamedRow<T, kBlocks>;
  static_assert(sizeof(typename Row::Shared) <= 227 * 1024);
  launch.template operator()<Row>(LaunchShape{.grid = dim3(unsigned(rows) * kBlocks),
                                              .block = dim3(Row::kThreads),
                                              .shared_bytes = sizeof(typename Row::Shared),
                                              .cluster_blocks = kBlocks});
}

// The kind follows from the size of a row alone: its bits must not depend on other rows.
template <typename T, typename F>
void DispatchRow(const RowOperands<T>& operands, const F& launch) {
  constexpr int kVector = Vector<T>::kSize;
  const bool aligned = operands.Aligned();
  const int64_t rows = operands.rows, packs = aligned ? operands.cols / kVector : operands.cols;
  if (!aligned) return DispatchBlockPerRow<MemoryRow<T, 1>>(rows, packs, launch);
  if (packs <= 128) return DispatchBlockPerRow<RegisterRow<T, 1>>(rows, packs, launch);
  if (packs <= 512) return DispatchBlockPerRow<RegisterRow<T, 2>>(rows, (packs + 1) / 2, launch);
  if (packs <= kRegisterPacks) {
    const int64_t threads = CeilDiv(packs, kRowPacks);
    return DispatchBlockPerRow<RegisterRow<T, kRowPacks>>(rows, threads, launch);
  }
  if (ComputeMajor() == 9) {
    if (packs <= StreamedRow<T, 1>::kMostPacks) return DispatchStreamed<T, 1>(rows, launch);
    if (packs <= StreamedRow<T, 2>::kMostPacks) return DispatchStreamed<T, 2>(rows, launch);
    if (packs <= StreamedRow<T, 4>::kMostPacks) return DispatchStreamed<T, 4>(rows, launch);
  }
  DispatchBlockPerRow<MemoryRow<T, kVector>>(rows, packs, launch);
}

// Launches a kernel with a shape that DispatchRow has given.
template <typename... Parameters, typename... Arguments>
void LaunchRows(void (*kernel)(Parameters...), LaunchShape shape, cudaStream_t stream,
                const Arguments&... arguments) {
  if (shape.shared_bytes > 0) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    shape.grid.x = std::min(shape.grid.x, BlocksAtATime(kernel, shape));
  }
  LaunchWithPdl(kernel, shape, stream, arguments...);
}

}  // namespace eet
