// Linear for many rows on Hopper: launches the kernel of the epilogue and the kernel's size.
#include "ops/linear_sm90.h"
#include "ops/linear_sm90_epilogue.cuh"
#include "ops/linear_sm90_kernel.cuh"

namespace eet {

template <typename T>
void LinearSm90(Stream stream, const LinearArgs<T>& args) {
  const LinearSizes sizes{.rows = args.rows, .in = args.in, .out = args.out};
  WithLinearShape<T>(args.out, [&]<class Shape>(Shape) {
    const auto launch = args.gated ? LaunchLinearSm90<Shape, LinearGates<Shape>>
                                   : LaunchLinearSm90<Shape, LinearOutputs<Shape>>;
    launch(stream, args.x, args.kernel, sizes, args);
  });
}

template void LinearSm90(Stream, const LinearArgs<bfloat16>&);
template void LinearSm90(Stream, const LinearArgs<float16>&);

}  // namespace eet
