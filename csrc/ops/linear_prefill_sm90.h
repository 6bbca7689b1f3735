// Linear for many rows on Hopper. The kernel is explained in linear_prefill_sm90_kernel.cuh.
#pragma once

#include <type_traits>

#include "core/vector.cuh"
#include "ops/linear_cuda.h"

namespace eet {

// Whether the kernel is for such arguments, on a device of compute capability 9.0. Rows of x and
// kernel are aligned to 16 bytes.
template <typename T, typename Y>
bool LinearSm90Takes(const LinearArgs<T, Y>& args) {
  if (sizeof(T) != 2) return false;
  if (!std::is_same_v<T, Y>) return !args.gated;
  const int64_t cols = args.gated ? args.out / 2 : args.out;
  return cols % Vector<T>::kSize == 0 && IsAligned16(args.y) && IsAligned16(args.residual) &&
         !(args.gated && args.residual);
}

// For 2-byte types.
template <typename T, typename Y>
void LinearPrefillSm90(Stream stream, const LinearArgs<T, Y>& args);

}  // namespace eet
