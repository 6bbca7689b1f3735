// Hopper's barriers in shared memory, which count arrivals of threads and bytes of asynchronous
// copies.
#pragma once

#include <cstdint>

#include "core/mma.cuh"
#include "core/reduce.cuh"

namespace eet {

// Who arrives at a barrier for a warp: one lane, behind a __syncwarp with the others. But racecheck
// takes in only what the arriving threads themselves have read and written; for it all lanes arrive
// (EET_RACECHECK in CMakeLists.txt).
#ifdef EET_RACECHECK
constexpr bool kAllLanesArrive = true;
#else
constexpr bool kAllLanesArrive = false;
#endif

// An mbarrier in shared memory. A phase ends when all expected arrivals and bytes are there; its
// parity is 0 for the first phase, then 1, 0, ...
class Barrier {
 public:
  // By one thread; the others see it after FenceBarrierInit and a barrier of the block.
  __device__ __forceinline__ void Init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(Address()), "r"(arrivals));
  }

  // Where so many warps arrive, each by ArriveAsWarp or ArriveAsWarpExpecting.
  __device__ __forceinline__ void InitForWarps(int warps) {
    Init(kAllLanesArrive ? warps * kWarpSize : warps);
  }

  __device__ __forceinline__ void Arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(Address()) : "memory");
  }

  // Arrives at this barrier of the cluster's block `rank`, which must still be running.
  __device__ __forceinline__ void ArriveAt(int rank) {
    asm volatile(
        "{\n"
        "  .reg .b32 remote;\n"
        "  mapa.shared::cluster.u32 remote, %0, %1;\n"
        "  mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(Address()),
        "r"(rank)
        : "memory");
  }

  // Arrives and announces copies of so many bytes.
  __device__ __forceinline__ void ArriveExpecting(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(Address()),
                 "r"(bytes)
                 : "memory");
  }

  // By all lanes of a warp.
  __device__ __forceinline__ void ArriveAsWarp(int lane) {
    if constexpr (kAllLanesArrive) {
      Arrive();
    } else if (lane == 0) {
      Arrive();
    }
  }

  __device__ __forceinline__ void ArriveAsWarpExpecting(int lane, int bytes) {
    if (lane == 0) {
      ArriveExpecting(bytes);
    } else if constexpr (kAllLanesArrive) {
      Arrive();
    }
  }

  // Whether the phase of this parity has ended; the hardware waits a little before it says no.
  __device__ __forceinline__ bool TryWait(int parity) {
    uint32_t done;
    asm volatile(
        "{\n"
        "  .reg .pred done;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(Address()), "r"(parity)
        : "memory");
    return done;
  }

  // Until that phase has ended.
  __device__ __forceinline__ void Wait(int parity) {
    while (!TryWait(parity)) {
    }
  }

  __device__ __forceinline__ uint32_t Address() const { return SharedAddress(&state_); }

 private:
  uint64_t state_;
};

// Makes new barriers visible to TMA and to the cluster.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

}  // namespace eet
