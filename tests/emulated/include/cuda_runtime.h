// Of the CUDA runtime and the language, what the kernels and their launchers use.
#pragma once

#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>

#include "device.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorLaunchFailure };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMemoryClockRate,
  cudaDevAttrClockRate,
  cudaDevAttrGlobalMemoryBusWidth
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributeClusterDimension
};
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);  // of the last one
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             int flags, cudaDriverEntryPointQueryResult* found);

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

namespace emulated {
// Checks the shape as the runtime does, then runs the grid.
cudaError_t Launch(const void* kernel, Grid& grid);
void AllowShared(const void* kernel, int bytes);
}  // namespace emulated

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
  emulated::AllowShared(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}

// A multiprocessor holds one block of any kernel.
template <typename... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(P...), int,
                                                          size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <typename... P>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(P...),
                                           const cudaLaunchConfig_t* config) {
  *clusters = emulated::kMultiprocessors / int(config->attrs[0].val.clusterDim.x);
  return cudaSuccess;
}

template <typename... P, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               const Arguments&... arguments) {
  const std::tuple<P...> parameters(arguments...);
  emulated::Grid grid{.blocks = config->gridDim,
                      .threads = config->blockDim,
                      .shared_bytes = int(config->dynamicSmemBytes)};
  grid.kernel = [&] { std::apply(kernel, parameters); };
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    grid.cluster_blocks = int(config->attrs[i].val.clusterDim.x);
  }
  return emulated::Launch(reinterpret_cast<const void*>(kernel), grid);
}

template <typename Parameter>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Parameter), dim3 blocks, dim3 threads,
                                        void** arguments, size_t shared_bytes, cudaStream_t) {
  emulated::Grid grid{
      .blocks = blocks, .threads = threads, .shared_bytes = int(shared_bytes), .cooperative = true};
  grid.kernel = [&] { kernel(*static_cast<std::remove_cvref_t<Parameter>*>(arguments[0])); };
  return emulated::Launch(reinterpret_cast<const void*>(kernel), grid);
}
