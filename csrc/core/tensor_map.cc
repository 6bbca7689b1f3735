// Tensor maps come from the driver, which is found at run time.
#include "core/tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

#include "core/launch_problem.h"

namespace eet {
namespace {

using Encode = decltype(&::cuTensorMapEncodeTiled);

Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(function)
             : nullptr;
}

}  // namespace

bool MakeRowTiles(CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols, int box_rows,
                  int box_chunks) {
  static const Encode encode = FindEncode();
  if (!encode) {
    LaunchProblem() = "the CUDA driver has no cuTensorMapEncodeTiled";
    return false;
  }
  const int chunk = ChunkColumns(cols);
  const CUtensorMapSwizzle swizzle = chunk == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : chunk == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                   : CU_TENSOR_MAP_SWIZZLE_32B;
  const cuuint64_t sizes[3] = {cuuint64_t(chunk), cuuint64_t(rows), cuuint64_t(cols / chunk)};
  const cuuint64_t strides[2] = {cuuint64_t(cols) * 2, cuuint64_t(chunk) * 2};
  const cuuint32_t box[3] = {cuuint32_t(chunk), cuuint32_t(box_rows), cuuint32_t(box_chunks)};
  const cuuint32_t steps[3] = {1, 1, 1};
  // Fetching 256 bytes into the second cache for every 128 costs 7% of the bandwidth on an H200.
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(matrix), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return true;
  LaunchProblem() = "cannot make a tensor map of a matrix [" + std::to_string(rows) + ", " +
                    std::to_string(cols) + "]: CUDA driver error " + std::to_string(result);
  return false;
}

}  // namespace eet
