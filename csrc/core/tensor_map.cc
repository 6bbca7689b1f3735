// Tensor maps come from the driver, which is found at run time.
#include "core/tensor_map.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <span>
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

struct Layout {
  CUtensorMapSwizzle swizzle;
  CUtensorMapL2promotion promotion;
};

std::string Shape(std::span<const cuuint64_t> sizes) {
  std::string text;
  for (const cuuint64_t size : sizes)
    text = std::to_string(size) + (text.empty() ? "" : ", ") + text;
  return "[" + text + "]";
}

// Strides are in bytes, of all dimensions but the innermost, which comes first.
template <size_t kRank>
bool Make(CUtensorMap* map, const void* tensor, const cuuint64_t (&sizes)[kRank],
          const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
          const Layout& layout) {
  static const Encode encode = FindEncode();
  if (!encode) {
    LaunchProblem() = "the CUDA driver has no cuTensorMapEncodeTiled";
    return false;
  }
  cuuint32_t steps[kRank];
  std::fill_n(steps, kRank, 1);
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(tensor), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, layout.swizzle, layout.promotion,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return true;
  LaunchProblem() = "cannot make a tensor map of " + Shape(sizes) + ": CUDA driver error " +
                    std::to_string(result);
  return false;
}

// The swizzle of rows of so many elements.
CUtensorMapSwizzle SwizzleOf(int columns) {
  return columns == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
         : columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                         : CU_TENSOR_MAP_SWIZZLE_32B;
}

}  // namespace

bool MakeTileMap(CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols, int box_rows,
                 int box_chunks) {
  const int chunk = ChunkColumns(cols);
  // Fetching 256 bytes into L2 for every 128 costs 7% of the bandwidth on an H200.
  return Make<3>(map, matrix, {cuuint64_t(chunk), cuuint64_t(rows), cuuint64_t(cols / chunk)},
                 {cuuint64_t(cols) * 2, cuuint64_t(chunk) * 2},
                 {cuuint32_t(chunk), cuuint32_t(box_rows), cuuint32_t(box_chunks)},
                 {SwizzleOf(chunk), CU_TENSOR_MAP_L2_PROMOTION_L2_128B});
}

bool MakeBoxMap(CUtensorMap* map, const void* tensor, const BoxShape& shape) {
  cuuint64_t sizes[4], strides[3];
  cuuint32_t box[4];
  std::copy_n(shape.sizes, 4, sizes);
  std::copy_n(shape.box, 4, box);
  for (int i = 0; i < 3; ++i) strides[i] = shape.strides[i] * 2;
  return Make<4>(map, tensor, sizes, strides, box,
                 {SwizzleOf(shape.box[0]), CU_TENSOR_MAP_L2_PROMOTION_L2_256B});
}

}  // namespace eet
