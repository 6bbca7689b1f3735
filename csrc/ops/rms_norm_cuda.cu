// RMS norm on the GPU.
#include "core/dispatch_row.cuh"
#include "ops/rms_norm.h"

namespace eet {

template <typename T, class Row>
__global__ void __launch_bounds__(Row::kThreads, Row::kLeastBlocks)
    RmsNormKernel(const __grid_constant__ RowOperands<T> rows, float eps) {
  Row::ForEach(rows, [&](auto& row) {
    const float square = row.Sum([](float x) { return x * x; }) / float(rows.cols);
    const float inv_rms = rsqrtf(square + eps);
    row.Write([&](float x, float scale, float) { return RmsNormElement(x, scale, inv_rms); });
  });
}

template <typename T>
void RmsNorm(Stream stream, const RmsNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const RowOperands<T> rows{.x = args.x,
                            .scale = args.scale,
                            .bias = nullptr,
                            .y = args.y,
                            .rows = args.rows,
                            .cols = args.cols,
                            .launches_dependents_early = args.launches_dependents_early};
  DispatchRow(rows, [&]<class Row>(const LaunchShape& shape) {
    LaunchRows(RmsNormKernel<T, Row>, shape, stream, rows, args.eps);
  });
}

template void RmsNorm(Stream, const RmsNormArgs<float>&);
template void RmsNorm(Stream, const RmsNormArgs<bfloat16>&);
template void RmsNorm(Stream, const RmsNormArgs<float16>&);

}  // namespace eet
