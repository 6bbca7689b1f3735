// Linear for many rows on Hopper: launches the kernel of the epilogue and the tiles.
#include "ops/linear_sm90.h"
#include "ops/linear_sm90_epilogue.cuh"
#include "ops/linear_sm90_kernel.cuh"

namespace eet {

template <typename T, typename Y>
void LinearSm90(Stream stream, const LinearArgs<T, Y>& args) {
  const LinearSizes sizes{.rows = args.rows, .in = args.in, .out = args.out};
  WithLinearShape<T, 64>(sizes, [&]<class Shape>(Shape) {
    if constexpr (std::is_same_v<T, Y>) {
      const auto launch = args.gated ? LaunchLinearSm90<Shape, LinearGates<Shape>>
                                     : LaunchLinearSm90<Shape, LinearOutputs<Shape>>;
      launch(stream, args.x, args.kernel, sizes, args);
    } else {
      LaunchLinearSm90<Shape, LinearFloats<Shape>>(stream, args.x, args.kernel, sizes, args);
    }
  });
}

template void LinearSm90(Stream, const LinearArgs<bfloat16>&);
template void LinearSm90(Stream, const LinearArgs<float16>&);
template void LinearSm90(Stream, const LinearArgs<bfloat16, float>&);
template void LinearSm90(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
