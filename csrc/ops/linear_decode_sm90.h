// Linear for few rows on Hopper. The kernel is explained in linear_decode_sm90_kernel.cuh.
#pragma once

#include "ops/linear_cuda.h"

namespace eet {

// For 2-byte types, on a device of compute capability 9.0; rows of x and kernel are aligned to 16
// bytes.
template <typename T, typename Y>
void LinearDecodeSm90(Stream stream, const LinearArgs<T, Y>& args);

// How many blocks finish a row's outputs.
int64_t LinearDecodeSm90Blocks(int64_t out, int64_t in);

}  // namespace eet
