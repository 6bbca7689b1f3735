// From a layer's normed input to attention in one kernel: the product x @ kernel^T + bias of
// linear.h, and what rotary_append.h makes of it. It needs no memory for queries, keys and values
// before they are turned.
#pragma once

#include "ops/linear.h"
#include "ops/rotary_append.h"

namespace eet {

// Returns false, having done nothing, where there is no such kernel: for the device, the path or
// the sizes, but whatever the number of tokens. Neither product.y nor append.qkv is used; append.q
// is not x, which the kernel still reads while it writes.
template <typename T>
bool QkvAppend(Stream stream, const LinearArgs<T>& product, const RotaryAppendArgs<T>& append);

}  // namespace eet
