// How linear runs on the host. Both ways add each output's products in the same order.
#pragma once

#include "ops/linear.h"

namespace eet {

constexpr int64_t kFewRows = 8;  // more pay for blocks

// Streams the kernel once for all rows, which share them in L1.
template <typename T, typename Y>
void LinearFewRows(const Stream& stream, const LinearArgs<T, Y>& args);

// Multiplies blocks of rows with blocks of outputs, each brought to the inner loop's order once.
template <typename T, typename Y>
void LinearManyRows(const Stream& stream, const LinearArgs<T, Y>& args);

}  // namespace eet
