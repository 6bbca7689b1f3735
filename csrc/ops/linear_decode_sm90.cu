// Linear for few rows on Hopper. The kernel is explained in linear_decode_sm90_kernel.cuh.
#include "ops/linear_decode_sm90.h"
#include "ops/linear_decode_sm90_launch.cuh"

namespace eet {

template <typename T, typename Y>
void LinearDecodeSm90(Stream stream, const LinearArgs<T, Y>& args) {
  LaunchLinearDecodeSm90<LinearDecodeOutputs<T, Y>>(stream, args.x, args.kernel,
                                                    {.rows = args.rows,
                                                     .in = args.in,
                                                     .out = args.out,
                                                     .weights_are_ready = args.weights_are_ready,
                                                     .normed = args.normed},
                                                    args);
}

int64_t LinearDecodeSm90Blocks(int64_t out, int64_t in) {
  return LinearDecodeTiles(out) * LinearDecodeSplits(out, in);
}

template void LinearDecodeSm90(Stream, const LinearArgs<bfloat16>&);
template void LinearDecodeSm90(Stream, const LinearArgs<float16>&);
template void LinearDecodeSm90(Stream, const LinearArgs<bfloat16, float>&);
template void LinearDecodeSm90(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
