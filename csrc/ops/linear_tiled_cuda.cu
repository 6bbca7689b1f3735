// Linear on the GPU for any size and alignment. One block computes 32 outputs of 16 rows from tiles
// in shared memory; each thread adds the products of one pair of outputs in the order of the
// columns.
#include "core/launch.cuh"
#include "core/round.h"
#include "ops/linear_cuda.h"

namespace eet {

constexpr int kPairs = 16;  // of outputs, per block
constexpr int kRows = 16;
constexpr int kCols = 32;  // of x and kernel, per tile

template <typename T>
__device__ float LoadOrZero(const T* matrix, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  return row < rows && col < cols ? float(matrix[row * cols + col]) : 0.0f;
}

template <typename T, typename Y>
__global__ void __launch_bounds__(kPairs* kRows) LinearTiledKernel(LinearArgs<T, Y> args) {
  // One more column: threads of a warp read different rows of the kernel's tile.
  __shared__ float x[kRows][kCols + 1], kernel[2 * kPairs][kCols + 1];
  const int64_t first_row = int64_t{blockIdx.x} * kRows,
                first_out = int64_t{blockIdx.y} * 2 * kPairs;
  const int thread = threadIdx.y * kPairs + threadIdx.x;
  float even = 0, odd = 0;
  for (int64_t first = 0; first < args.in; first += kCols) {
    for (int i = thread; i < 2 * kPairs * kCols; i += kPairs * kRows) {
      const int row = i / kCols, col = i % kCols;
      kernel[row][col] = LoadOrZero(args.kernel, first_out + row, args.out, first + col, args.in);
      if (row < kRows) {
        x[row][col] = LoadOrZero(args.x, first_row + row, args.rows, first + col, args.in);
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kCols; ++k) {
      even += x[threadIdx.y][k] * kernel[2 * threadIdx.x][k];
      odd += x[threadIdx.y][k] * kernel[2 * threadIdx.x + 1][k];
    }
    __syncthreads();  // the next tiles overwrite these
  }
  const int64_t row = first_row + threadIdx.y, out = first_out + 2 * threadIdx.x;
  if (row < args.rows && out < args.out) StorePair(args, row, out, even, odd);
}

template <typename T, typename Y>
void LinearTiled(Stream stream, const LinearArgs<T, Y>& args) {
  const dim3 grid(CeilDiv(args.rows, kRows), CeilDiv(args.out, 2 * kPairs));
  LaunchKernel(LinearTiledKernel<T, Y>, {.grid = grid, .block = dim3(kPairs, kRows)}, stream, args);
}

template void LinearTiled(Stream, const LinearArgs<float>&);
template void LinearTiled(Stream, const LinearArgs<bfloat16>&);
template void LinearTiled(Stream, const LinearArgs<float16>&);
template void LinearTiled(Stream, const LinearArgs<bfloat16, float>&);
template void LinearTiled(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
