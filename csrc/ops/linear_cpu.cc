// Linear on the host: few rows at memory speed, many rows in cache blocks.
#include "ops/linear_cpu.h"

namespace eet {

template <typename T, typename Y>
void Linear(Stream stream, const LinearArgs<T, Y>& args) {
  if (args.rows == 0 || args.out == 0) return;
  if (args.rows <= kFewRows) {
    LinearFewRows(stream, args);
  } else {
    LinearManyRows(stream, args);
  }
}

// On the host a norm is a pass of its own.
template <typename T>
int64_t LinearSquareParts(LinearPath, int64_t, int64_t, std::initializer_list<const T*>) {
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
