// Matrix products by cuBLASLt, which is loaded at run time from where jax[cuda13] put it.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace eet {

// d = activation(x @ kernel^T + bias + addend), all row-major.
struct LtProduct {
  const void* x;       // [rows, in], aligned to 16 bytes, as are its rows
  const void* kernel;  // [out, in], the same
  const void* bias;    // [out] or nullptr
  const void* addend;  // [rows, out] or nullptr; may be d
  void* d;             // [rows, out]
  int64_t rows, in, out;
  cudaDataType_t type;         // of x, kernel and bias
  cudaDataType_t result_type;  // of addend and d; of all where there is a bias
  cublasLtEpilogue_t
      activation;  // CUBLASLT_EPILOGUE_DEFAULT, _RELU or _GELU, which is the tanh one
};

// Launches the product; sums are in float32 and in an order that does not depend on `rows`. Returns
// false where cuBLASLt has no algorithm for such a kernel. What else goes wrong is a LaunchProblem.
bool LaunchLtProduct(cudaStream_t stream, const LtProduct& product);

}  // namespace eet
