// Linear for many rows on Hopper. The kernel is explained in linear_sm90_kernel.cuh.
#pragma once

#include "core/vector.cuh"
#include "ops/linear_cuda.h"

namespace eet {

// Whether the kernel is for such arguments, on a device of compute capability 9.0: what the library
// has no epilogue for. Rows of x and kernel are aligned to 16 bytes.
template <typename T>
bool LinearSm90Takes(const LinearArgs<T>& args) {
  const int64_t cols = args.gated ? args.out / 2 : args.out;
  const bool aligned = cols % Vector<T>::kSize == 0 && IsAligned16(args.y) &&
                       IsAligned16(args.bias) && IsAligned16(args.residual);
  if (!aligned || (args.gated && args.residual)) return false;
  return args.gated || (args.activation != Activation::kNone &&
                        (args.residual || !LibraryActivates<T>(args.activation)));
}

// For 2-byte types.
template <typename T>
void LinearSm90(Stream stream, const LinearArgs<T>& args);

}  // namespace eet
