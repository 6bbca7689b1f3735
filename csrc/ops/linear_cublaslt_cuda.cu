// Linear for many rows on the GPU: a library GEMM with as much of the rest fused as the library
// does, and element-wise kernels for what is left.
#include <algorithm>

#include "core/cublaslt.h"
#include "core/launch.cuh"
#include "core/round.h"
#include "core/vector.cuh"
#include "ops/linear_cuda.h"

namespace eet {

constexpr int kThreads = 256;

template <typename T>
constexpr cudaDataType_t kDataType = std::is_same_v<T, float>      ? CUDA_R_32F
                                     : std::is_same_v<T, bfloat16> ? CUDA_R_16BF
                                                                   : CUDA_R_16F;

// y from the products of all outputs. One thread per output, rows along x.
template <typename T, typename Y, typename P>
__global__ void __launch_bounds__(kThreads)
    FinishOutputsKernel(LinearArgs<T, Y> args, const P* products) {
  const int64_t row = blockIdx.x, col = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (col < args.out) StoreOutput(args, row, col, float(products[row * args.out + col]));
}

// y from the products of gates and their neighbours. One thread per pair, which is one load.
template <typename T, typename Y>
__global__ void __launch_bounds__(kThreads) FinishGatedKernel(LinearArgs<T, Y> args) {
  struct alignas(2 * sizeof(T)) Pair {
    T gate, up;
  };
  const int64_t row = blockIdx.x, i = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (i >= args.out / 2) return;
  const Pair pair = reinterpret_cast<const Pair*>(args.scratch)[row * (args.out / 2) + i];
  StoreGated(args, row, 2 * i, float(pair.gate), float(pair.up));
}

static LaunchShape Shape(int64_t rows, int64_t cols) {
  return {.grid = dim3(unsigned(rows), unsigned(CeilDiv(cols, kThreads))), .block = dim3(kThreads)};
}

template <typename T, typename Y>
static LtProduct Product(const LinearArgs<T, Y>& args) {
  return LtProduct{.x = args.x,
                   .kernel = args.kernel,
                   .bias = nullptr,
                   .addend = nullptr,
                   .d = args.y,
                   .rows = args.rows,
                   .in = args.in,
                   .out = args.out,
                   .type = kDataType<T>,
                   .result_type = kDataType<Y>,
                   .activation = CUBLASLT_EPILOGUE_DEFAULT};
}

// The product goes to scratch with its bias, and comes back gated, or activated before the
// residual.
template <typename T, typename Y>
static bool MultiplySome(Stream stream, LinearArgs<T, Y> args) {
  LtProduct product = Product(args);
  product.bias = args.bias;
  product.d = args.scratch;
  product.result_type = kDataType<T>;
  if (!LaunchLtProduct(stream, product)) return false;
  args.bias = nullptr;
  if (args.gated) {
    LaunchKernel(FinishGatedKernel<T, Y>, Shape(args.rows, args.out / 2), stream, args);
  } else {
    LaunchKernel(FinishOutputsKernel<T, Y, T>, Shape(args.rows, args.out), stream, args,
                 args.scratch);
  }
  return true;
}

// Some rows after the other: scratch has no room for all.
template <typename T, typename Y>
static bool MultiplyToScratch(Stream stream, const LinearArgs<T, Y>& args) {
  const int64_t at_once = LinearScratchRows(args.rows), cols = args.gated ? args.out / 2 : args.out;
  for (int64_t first = 0; first < args.rows; first += at_once) {
    LinearArgs<T, Y> some = args;
    some.rows = std::min(at_once, args.rows - first);
    some.x += first * args.in;
    some.y += first * cols;
    if (args.residual) some.residual += first * cols;
    if (!MultiplySome(stream, some)) return false;
  }
  return true;
}

// The product goes to y. The library adds a residual, and adds a bias and activates where all
// dtypes are the same.
template <typename T, typename Y>
static bool MultiplyToResult(Stream stream, LinearArgs<T, Y> args) {
  LtProduct product = Product(args);
  product.addend = args.residual;
  args.residual = nullptr;
  if constexpr (std::is_same_v<T, Y>) {
    product.bias = args.bias;
    args.bias = nullptr;
    if (LibraryActivates<T>(args.activation)) {
      const bool is_relu = args.activation == Activation::kRelu;
      product.activation = is_relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_GELU;
      args.activation = Activation::kNone;
    }
  }
  if (!LaunchLtProduct(stream, product)) return false;
  if (args.bias || args.activation != Activation::kNone) {
    const Y* products = args.y;
    LaunchKernel(FinishOutputsKernel<T, Y, Y>, Shape(args.rows, args.out), stream, args, products);
  }
  return true;
}

template <typename T, typename Y>
void LinearCublasLt(Stream stream, const LinearArgs<T, Y>& args) {
  const bool to_scratch = LinearNeedsScratch(
      args.path, args.gated, args.activation != Activation::kNone, args.residual != nullptr);
  const bool done = to_scratch ? MultiplyToScratch(stream, args) : MultiplyToResult(stream, args);
  if (!done) LinearTiled(stream, args);
}

template void LinearCublasLt(Stream, const LinearArgs<float>&);
template void LinearCublasLt(Stream, const LinearArgs<bfloat16>&);
template void LinearCublasLt(Stream, const LinearArgs<float16>&);
template void LinearCublasLt(Stream, const LinearArgs<bfloat16, float>&);
template void LinearCublasLt(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
