// The profiled decode step's kernels for heads of HEAD_DIM.
#include "ops/decode_step_kernel.cuh"

namespace eet {

template void LaunchDecodeStep<bfloat16, HEAD_DIM>(Stream, const StepParams<bfloat16>&, int);

}  // namespace eet
