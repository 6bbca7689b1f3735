// Launches of kernels, also of such that start while the one in front of them still works
// (programmatic dependent launch).
//
// A kernel launched by LaunchWithPdl may start as soon as every block of the preceding kernel has
// called LaunchDependents or has ended. It calls WaitForDependencies before it touches anything
// that preceding kernels write. What no kernel writes that it may overtake, it may read before: the
// flags *_are_ready of arguments say so. A kernel that calls LaunchDependents only after its own
// WaitForDependencies makes that true of all that precedes it.
#pragma once

#include <cuda_runtime.h>

#include "core/instructions.cuh"

namespace eet {

// The major compute capability of the current device.
inline int ComputeMajor() {
  static thread_local int known_device = -1, major = 0;
  int device = 0;
  cudaGetDevice(&device);
  if (device != known_device) {
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    known_device = device;
  }
  return major;
}

// The number of multiprocessors of the current device.
inline int Multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  unsigned cluster_blocks = 1;  // more only with ComputeMajor() == 9
};

inline cudaLaunchConfig_t LaunchConfig(const LaunchShape& shape, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  return config;
}

// For kernels that are in clusters by declaration, or in none.
template <typename... Parameters, typename... Arguments>
void LaunchKernel(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                  const Arguments&... arguments) {
  const cudaLaunchConfig_t config = LaunchConfig(shape, stream);
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

// How many blocks of a kernel that is launched in such clusters run at the same time: fewer than
// multiprocessors where their groups are not multiples of a cluster.
template <typename... Parameters>
unsigned BlocksAtATime(void (*kernel)(Parameters...), const LaunchShape& shape) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {shape.cluster_blocks, 1, 1};
  cudaLaunchConfig_t config = LaunchConfig(shape, nullptr);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  return unsigned(clusters) * shape.cluster_blocks;
}

// The same of a kernel without clusters, on any GPU.
template <typename... Parameters>
unsigned ResidentBlocks(void (*kernel)(Parameters...), const LaunchShape& shape) {
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, int(shape.block.x),
                                                shape.shared_bytes);
  return unsigned(blocks * Multiprocessors());
}

template <typename... Parameters, typename... Arguments>
void LaunchWithPdl(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster_blocks, 1, 1};
  cudaLaunchConfig_t config = LaunchConfig(shape, stream);
  config.attrs = attributes;
  // Only Hopper's code waits for kernels before it: other GPUs run that of sm_80, which does not.
  if (ComputeMajor() == 9) config.numAttrs = shape.cluster_blocks > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace eet
