// A few blocks that work on one thing: a thread block cluster, or the first block alone where the
// GPU's code was compiled without clusters.
#pragma once

#include <cuda_runtime.h>

namespace eet {

// The blocks of a kernel that is launched in clusters of kBlocks blocks, one for each item. Blocks
// whose rank is not below the size have to return at once.
template <int kBlocks>
struct ClusterOf {
  static __device__ int Item() { return blockIdx.x / kBlocks; }
  static __device__ int Rank() { return blockIdx.x % kBlocks; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static constexpr int kSize = kBlocks;

  // Waits for all threads of the cluster; what they wrote before is visible after.
  static __device__ void Sync() {
    Arrive();
    Wait();
  }

  // The two halves of it: between them a thread may do something else.
  static __device__ void Arrive() { __cluster_barrier_arrive(); }
  static __device__ void Wait() { __cluster_barrier_wait(); }

  // The same, but what they wrote need not be visible: nobody waits for memory.
  static __device__ void Await() {
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
  }

  // The block of `rank`'s copy of a shared variable. That block must still be running.
  template <typename T>
  static __device__ const T& Shared(const T& variable, int rank) {
    return *static_cast<const T*>(__cluster_map_shared_rank(&variable, rank));
  }
#else
  static constexpr int kSize = 1;

  static __device__ void Sync() { __syncthreads(); }
  static __device__ void Arrive() {}
  static __device__ void Wait() { __syncthreads(); }
  static __device__ void Await() {}

  template <typename T>
  static __device__ const T& Shared(const T& variable, int) {
    return variable;
  }
#endif
};

// Blocks per cluster of a kernel declared EET_CLUSTER, in the grid of every GPU.
constexpr int kClusterBlocks = 8;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define EET_CLUSTER
#else
#define EET_CLUSTER __cluster_dims__(eet::kClusterBlocks, 1, 1)
#endif

using Cluster = ClusterOf<kClusterBlocks>;

}  // namespace eet
