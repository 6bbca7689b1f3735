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

template void Linear(Stream, const LinearArgs<float>&);
template void Linear(Stream, const LinearArgs<bfloat16>&);
template void Linear(Stream, const LinearArgs<float16>&);
template void Linear(Stream, const LinearArgs<bfloat16, float>&);
template void Linear(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
