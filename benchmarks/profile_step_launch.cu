// The host's part of the profiled decode step. Its kernels are compiled by profile_step_kernels.cu
// for the models' heads alone, which profile_step_heads.inc declares: all of them take minutes.
#include "core/launch_problem.h"
#include "ops/decode_step_launch.cuh"

namespace eet {

template <typename T, int kDim>
void LaunchDecodeStep(Stream, const StepParams<T>&, int) {
  LaunchProblem() = "profile_step was built without heads of " + std::to_string(kDim);
}

#include "profile_step_heads.inc"

}  // namespace eet

#include "ops/decode_step_sm90.cu"
