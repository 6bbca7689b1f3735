// How linear runs on the GPU. Which way is taken depends on the path and on sizes of the kernel,
// never on the number of rows.
#pragma once

#include "ops/linear.h"

namespace eet {

// Any size, any alignment: the simplest correct kernel.
template <typename T, typename Y>
void LinearTiled(Stream stream, const LinearArgs<T, Y>& args);

// Streams the kernel at memory speed; rows of x and kernel are aligned to 16 bytes.
template <typename T, typename Y>
void LinearDecode(Stream stream, const LinearArgs<T, Y>& args);

// Whether the library's product activates. Its GELU is the tanh one, in an approximation that only
// 16 bits hide.
template <typename T>
constexpr bool LibraryActivates(Activation activation) {
  return activation == Activation::kRelu || (activation == Activation::kGeluTanh && sizeof(T) == 2);
}

// Library GEMM; rows of x and kernel are aligned to 16 bytes.
template <typename T, typename Y>
void LinearCublasLt(Stream stream, const LinearArgs<T, Y>& args);

}  // namespace eet
