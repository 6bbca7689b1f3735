// Between the host's part of the decode step and its kernels, which are compiled in a file of their
// own for each head size.
#pragma once

#include "ops/decode_step_block.cuh"

namespace eet {

// Launches the kernel of a head size, in `grid` blocks.
template <typename T, int kDim>
void LaunchDecodeStep(Stream stream, const StepParams<T>& params, int grid);

}  // namespace eet
