// Linear on the GPU: streamed for decode; for prefill a GEMM of our own on Hopper, the library's
// elsewhere; tiles for odd sizes.
#include "core/launch.cuh"
#include "ops/linear_decode_sm90.h"
#include "ops/linear_sm90.h"

namespace eet {

template <typename T, typename Y>
void Linear(Stream stream, const LinearArgs<T, Y>& args) {
  if (args.rows == 0 || args.out == 0) return;
  const bool aligned = args.in > 0 && args.in % Vector<T>::kSize == 0 && IsAligned16(args.x) &&
                       IsAligned16(args.kernel);
  if (!aligned) {
    LinearTiled(stream, args);
  } else if (args.path == LinearPath::kDecode) {
    if constexpr (sizeof(T) == 2) {
      if (ComputeMajor() == 9) return LinearDecodeSm90(stream, args);
    }
    LinearDecode(stream, args);
  } else {
    if constexpr (sizeof(T) == 2) {
      if (ComputeMajor() == 9 && LinearSm90Takes(args)) return LinearSm90(stream, args);
    }
    LinearPrefill(stream, args);
  }
}

template void Linear(Stream, const LinearArgs<float>&);
template void Linear(Stream, const LinearArgs<bfloat16>&);
template void Linear(Stream, const LinearArgs<float16>&);
template void Linear(Stream, const LinearArgs<bfloat16, float>&);
template void Linear(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
