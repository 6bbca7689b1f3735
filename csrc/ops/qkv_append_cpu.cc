// On the host the product is a pass of its own.
#include "ops/qkv_append.h"

namespace eet {

template <typename T>
bool QkvAppend(Stream, const LinearArgs<T>&, const RotaryAppendArgs<T>&) {
  return false;
}

template bool QkvAppend(Stream, const LinearArgs<float>&, const RotaryAppendArgs<float>&);
template bool QkvAppend(Stream, const LinearArgs<bfloat16>&, const RotaryAppendArgs<bfloat16>&);
template bool QkvAppend(Stream, const LinearArgs<float16>&, const RotaryAppendArgs<float16>&);

}  // namespace eet
