// Linear on the GPU: streamed for decode; for prefill a GEMM of our own on Hopper, the library's
// elsewhere; tiles for odd sizes.
#include <algorithm>
#include <type_traits>

#include "core/launch.cuh"
#include "core/vector.cuh"
#include "ops/linear_decode_sm90.h"
#include "ops/linear_prefill_sm90.h"

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
      if (ComputeMajor() == 9 && LinearSm90Takes(args)) return LinearPrefillSm90(stream, args);
    }
    LinearCublasLt(stream, args);
  }
}

template <typename T>
int64_t LinearSquareParts(LinearPath path, int64_t out, int64_t in,
                          std::initializer_list<const T*> operands) {
  // The scale could lead out of float16's range.
  if constexpr (std::is_same_v<T, bfloat16>) {
    constexpr int kVector = Vector<T>::kSize;
    const bool aligned = in > 0 && in % kVector == 0 && out % kVector == 0 &&
                         std::ranges::all_of(operands, IsAligned16<T>);
    if (aligned && path == LinearPath::kDecode && ComputeMajor() == 9) {
      return LinearDecodeSm90Blocks(out, in);
    }
  }
  return 0;
}

template void Linear(Stream, const LinearArgs<float>&);
template void Linear(Stream, const LinearArgs<bfloat16>&);
template void Linear(Stream, const LinearArgs<float16>&);
template void Linear(Stream, const LinearArgs<bfloat16, float>&);
template void Linear(Stream, const LinearArgs<float16, float>&);
template int64_t LinearSquareParts(LinearPath, int64_t, int64_t,
                                   std::initializer_list<const float*>);
template int64_t LinearSquareParts(LinearPath, int64_t, int64_t,
                                   std::initializer_list<const bfloat16*>);
template int64_t LinearSquareParts(LinearPath, int64_t, int64_t,
                                   std::initializer_list<const float16*>);

}  // namespace eet
