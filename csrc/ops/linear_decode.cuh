// What the streaming kernels of linear share.
#pragma once

#include <cstdint>

#include "core/instructions.cuh"
#include "core/reduce.cuh"
#include "ops/linear_cuda.h"

namespace eet {

// One warp per pair of adjacent outputs, on ordinary cores: float32 has no tensor cores of its
// precision.
template <typename Y>
void LinearDecodeFloat(Stream stream, const LinearArgs<float, Y>& args);

}  // namespace eet
