// Layer norm on the GPU: the mean first, then the variance around it.
#include "core/dispatch_row.cuh"
#include "ops/layer_norm.h"

namespace eet {

template <typename T, class Row>
__global__ void __launch_bounds__(Row::kThreads, Row::kLeastBlocks)
    LayerNormKernel(const __grid_constant__ RowOperands<T> rows, float eps) {
  Row::ForEach(rows, [&](auto& row) {
    const float cols = float(rows.cols);
    const float mean = row.Sum([](float x) { return x; }) / cols;
    const float variance = row.Sum([=](float x) { return (x - mean) * (x - mean); }) / cols;
    const float inv_std = rsqrtf(variance + eps);
    row.Write([&](float x, float scale, float bias) {
      return LayerNormElement(x, scale, bias, mean, inv_std);
    });
  });
}

template <typename T>
void LayerNorm(Stream stream, const LayerNormArgs<T>& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const RowOperands<T> rows{.x = args.x,
                            .scale = args.scale,
                            .bias = args.bias,
                            .y = args.y,
                            .rows = args.rows,
                            .cols = args.cols,
                            .launches_dependents_early = args.launches_dependents_early};
  DispatchRow(rows, [&]<class Row>(const LaunchShape& shape) {
    LaunchRows(LayerNormKernel<T, Row>, shape, stream, rows, args.eps);
  });
}

template void LayerNorm(Stream, const LayerNormArgs<float>&);
template void LayerNorm(Stream, const LayerNormArgs<bfloat16>&);
template void LayerNorm(Stream, const LayerNormArgs<float16>&);

}  // namespace eet
