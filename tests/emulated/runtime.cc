// The CUDA runtime of the emulated GPU, and cuBLASLt's product.
#include <cuda.h>
#include <cuda_runtime.h>

#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "core/cublaslt.h"
#include "core/types.h"

namespace {

constexpr int kShared = 48 << 10;  // that a kernel may have without asking for more

thread_local std::string last_problem, reported;

std::map<const void*, int>& AllowedShared() {
  static std::map<const void*, int> allowed;
  return allowed;
}

std::mutex allowed_mutex;

std::string ProblemOf(const emulated::Grid& grid, int allowed) {
  const auto& [blocks, threads] = std::pair(grid.blocks, grid.threads);
  if (blocks.count() == 0 || blocks.y > 65535 || blocks.z > 65535) return "invalid grid";
  if (threads.count() == 0 || threads.count() > emulated::kMostThreads) return "invalid block";
  if (grid.shared_bytes > allowed) return "too much shared memory";
  if (blocks.count() % unsigned(grid.cluster_blocks) != 0) return "invalid cluster";
  if (grid.cooperative && blocks.count() > emulated::kMultiprocessors) return "grid too large";
  return "";
}

}  // namespace

void emulated::AllowShared(const void* kernel, int bytes) {
  const std::lock_guard lock(allowed_mutex);
  if (bytes <= kSharedBytes) AllowedShared()[kernel] = bytes;
}

cudaError_t emulated::Launch(const void* kernel, Grid& grid) {
  int allowed = kShared;
  {
    const std::lock_guard lock(allowed_mutex);
    const auto found = AllowedShared().find(kernel);
    if (found != AllowedShared().end()) allowed = std::max(allowed, found->second);
  }
  std::string problem = ProblemOf(grid, allowed);
  if (problem.empty()) problem = Run(grid);
  if (problem.empty()) return cudaSuccess;
  last_problem = "emulated kernel: " + problem;
  return cudaErrorLaunchFailure;
}

cudaError_t cudaGetLastError() {
  reported = std::exchange(last_problem, {});
  return reported.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t) { return reported.c_str(); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = emulated::kMultiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::kSharedBytes;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrClockRate:
      *value = 1'000'000;  // kHz: a cycle takes a nanosecond
      break;
    case cudaDevAttrMemoryClockRate:  // in kHz
      *value = 3'201'000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:  // in bits
      *value = 6144;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, int,
                                             cudaDriverEntryPointQueryResult* found) {
  *function = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

namespace eet {

namespace {

float Load(const void* array, int64_t i, cudaDataType_t type) {
  if (type == CUDA_R_32F) return static_cast<const float*>(array)[i];
  if (type == CUDA_R_16F) return float(static_cast<const float16*>(array)[i]);
  return float(static_cast<const bfloat16*>(array)[i]);
}

void Store(void* array, int64_t i, cudaDataType_t type, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(array)[i] = value;
  } else if (type == CUDA_R_16F) {
    static_cast<float16*>(array)[i] = float16(value);
  } else {
    static_cast<bfloat16*>(array)[i] = bfloat16(value);
  }
}

float Activate(cublasLtEpilogue_t activation, float x) {
  if (activation == CUBLASLT_EPILOGUE_RELU) return x < 0.0f ? 0.0f : x;
  if (activation == CUBLASLT_EPILOGUE_DEFAULT) return x;
  return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

}  // namespace

bool LaunchLtProduct(cudaStream_t, const LtProduct& product) {
  for (int64_t row = 0; row < product.rows; ++row) {
    for (int64_t out = 0; out < product.out; ++out) {
      float sum = 0;
      for (int64_t i = 0; i < product.in; ++i) {
        sum += Load(product.x, row * product.in + i, product.type) *
               Load(product.kernel, out * product.in + i, product.type);
      }
      const int64_t at = row * product.out + out;
      if (product.addend) sum += Load(product.addend, at, product.result_type);
      if (product.bias) sum += Load(product.bias, out, product.type);
      Store(product.d, at, product.result_type, Activate(product.activation, sum));
    }
  }
  return true;
}

}  // namespace eet
