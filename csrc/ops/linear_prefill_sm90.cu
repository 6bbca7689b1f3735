// Linear for many rows on Hopper: launches the kernel of the epilogue and the tiles.
#include "ops/linear_prefill_sm90.h"
#include "ops/linear_prefill_sm90_floats.cuh"
#include "ops/linear_prefill_sm90_kernel.cuh"

namespace eet {

template <typename T, typename Y>
void LinearPrefillSm90(Stream stream, const LinearArgs<T, Y>& args) {
  const LinearSizes sizes{.rows = args.rows,
                          .in = args.in,
                          .out = args.out,
                          .weights_are_ready = args.weights_are_ready};
  if constexpr (std::is_same_v<T, Y>) {
    if (args.gated) {  // by tiles whose results are whole lines
      return WithLinearShape<T, 128>(sizes, [&]<class Shape>(Shape) {
        LaunchLinearPrefillSm90<Shape, LinearGates<Shape>>(stream, args.x, args.kernel, sizes,
                                                           args);
      });
    }
  }
  WithLinearShape<T, 64>(sizes, [&]<class Shape>(Shape) {
    using Epilogue =
        std::conditional_t<std::is_same_v<T, Y>, LinearOutputs<Shape>, LinearFloats<Shape>>;
    LaunchLinearPrefillSm90<Shape, Epilogue>(stream, args.x, args.kernel, sizes, args);
  });
}

template void LinearPrefillSm90(Stream, const LinearArgs<bfloat16>&);
template void LinearPrefillSm90(Stream, const LinearArgs<float16>&);
template void LinearPrefillSm90(Stream, const LinearArgs<bfloat16, float>&);
template void LinearPrefillSm90(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
