// Chooses one algorithm for each kind of product, and launches it.
#include "core/cublaslt.h"

#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

#include "core/cublaslt_functions.h"
#include "core/launch_problem.h"

namespace eet {
namespace {

// A status that ends the launch.
struct LtFailure {
  std::string problem;
};

void Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw LtFailure{std::string(what) + " failed: " + Lt().status_string(status)};
}

// Lets this thread load code and create handles while it captures a CUDA graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// The descriptors of a product of `rows` rows. cuBLASLt is column-major: to it, kernel is
// [in, out] to be transposed, x [in, rows], d [out, rows].
class Descriptors {
 public:
  Descriptors(const LtProduct& product, int64_t rows) {
    const uint64_t in = product.in, out = product.out;
    Check(Lt().create_operation(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
    Set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (product.bias) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
    Set(CUBLASLT_MATMUL_DESC_EPILOGUE, Epilogue(product));
    Check(Lt().create_layout(&kernel, product.type, in, out, in), "MatrixLayoutCreate");
    Check(Lt().create_layout(&x, product.type, in, rows, in), "MatrixLayoutCreate");
    Check(Lt().create_layout(&d, product.result_type, out, rows, out), "MatrixLayoutCreate");
  }

  ~Descriptors() {
    for (cublasLtMatrixLayout_t layout : {kernel, x, d}) {
      if (layout) Lt().destroy_layout(layout);
    }
    if (operation) Lt().destroy_operation(operation);
  }

  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  static cublasLtEpilogue_t Epilogue(const LtProduct& product) {
    const int bias = product.bias ? CUBLASLT_EPILOGUE_BIAS : 0;
    const bool plain = product.activation == CUBLASLT_EPILOGUE_DEFAULT;
    return cublasLtEpilogue_t(plain && bias ? bias : int(product.activation) | bias);
  }

  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t kernel = nullptr, x = nullptr, d = nullptr;

 private:
  template <typename V>
  void Set(cublasLtMatmulDescAttributes_t attribute, const V& value) {
    Check(Lt().set_operation(operation, attribute, &value, sizeof(value)),
          "MatmulDescSetAttribute");
  }
};

class Preference {
 public:
  explicit Preference(uint32_t result_alignment) {
    Check(Lt().create_preference(&value), "MatmulPreferenceCreate");
    Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{0});
    Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16});
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16});
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, result_alignment);
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, result_alignment);
  }

  ~Preference() { Lt().destroy_preference(value); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  cublasLtMatmulPreference_t value = nullptr;

 private:
  template <typename V>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, const V& number) {
    Check(Lt().set_preference(value, attribute, &number, sizeof(number)),
          "MatmulPreferenceSetAttribute");
  }
};

using Algorithm = std::optional<cublasLtMatmulAlgo_t>;

// Everything an algorithm may depend on. The number of rows is not among it, so that a row's bits
// do not depend on its neighbours.
using Kind =
    std::tuple<int64_t, int64_t, cudaDataType_t, cudaDataType_t, cublasLtEpilogue_t, uint32_t>;

// One device's handle, and the algorithms chosen so far.
class Device {
 public:
  Device() { Check(Lt().create(&handle), "cublasLtCreate"); }

  Algorithm Find(const LtProduct& product) {
    const uint32_t alignment = ResultAlignment(product);
    const Kind kind{
        product.in, product.out, product.type, product.result_type, Descriptors::Epilogue(product),
        alignment};
    const std::lock_guard lock(mutex_);
    const auto found = algorithms_.find(kind);
    if (found != algorithms_.end()) return found->second;
    return algorithms_[kind] = Choose(product, alignment);
  }

  cublasLtHandle_t handle = nullptr;

 private:
  // The largest power of two up to 16 that divides every row's address.
  static uint32_t ResultAlignment(const LtProduct& product) {
    const uintptr_t row_bytes = product.out * (product.result_type == CUDA_R_32F ? 4 : 2);
    const uintptr_t bits = reinterpret_cast<uintptr_t>(product.d) |
                           reinterpret_cast<uintptr_t>(product.addend) | row_bytes | 16;
    return uint32_t(bits & -bits);
  }

  // The best algorithm for many rows that serves any number of them.
  Algorithm Choose(const LtProduct& product, uint32_t alignment) const {
    constexpr int64_t kTypicalRows = 1024;
    const Descriptors typical(product, kTypicalRows);
    const Preference preference(alignment);
    std::array<cublasLtMatmulHeuristicResult_t, 16> results;
    int count = 0;
    const cublasStatus_t status =
        Lt().heuristic(handle, typical.operation, typical.kernel, typical.x, typical.d, typical.d,
                       preference.value, int(results.size()), results.data(), &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
    Check(status, "cublasLtMatmulAlgoGetHeuristic");
    for (int i = 0; i < count; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS && ServesAnyRows(product, results[i].algo)) {
        return results[i].algo;
      }
    }
    return std::nullopt;
  }

  bool ServesAnyRows(const LtProduct& product, const cublasLtMatmulAlgo_t& algorithm) const {
    for (const int64_t rows : {1, 2, 7, 64, 1000, 65536}) {
      const Descriptors tried(product, rows);
      cublasLtMatmulHeuristicResult_t result;
      const cublasStatus_t status = Lt().check(handle, tried.operation, tried.kernel, tried.x,
                                               tried.d, tried.d, &algorithm, &result);
      if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > 0) return false;
    }
    return true;
  }

  std::mutex mutex_;
  std::map<Kind, Algorithm> algorithms_;
};

Device& CurrentDevice() {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  int ordinal = 0;
  cudaGetDevice(&ordinal);
  const std::lock_guard lock(mutex);
  return devices[ordinal];
}

bool Launch(cudaStream_t stream, const LtProduct& product) {
  if (!Lt().problem.empty()) throw LtFailure{Lt().problem};
  const RelaxedCapture relaxed;
  Device& device = CurrentDevice();
  const Algorithm algorithm = device.Find(product);
  if (!algorithm) return false;
  const Descriptors descriptors(product, product.rows);
  const float one = 1.0f, scale = product.addend ? 1.0f : 0.0f;
  const void* addend = product.addend ? product.addend : product.d;
  Check(Lt().matmul(device.handle, descriptors.operation, &one, product.kernel, descriptors.kernel,
                    product.x, descriptors.x, &scale, addend, descriptors.d, product.d,
                    descriptors.d, &*algorithm, nullptr, 0, stream),
        "cublasLtMatmul");
  return true;
}

}  // namespace

bool LaunchLtProduct(cudaStream_t stream, const LtProduct& product) {
  try {
    return Launch(stream, product);
  } catch (const LtFailure& failure) {
    LaunchProblem() = failure.problem;
    return true;
  }
}

}  // namespace eet
