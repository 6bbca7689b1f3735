// Hopper's copy engine: one thread orders kilobytes into shared memory, a barrier counts them in.
#pragma once

#include <cuda.h>

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
  // By one thread; the others see it after FenceBarriers and a barrier of the block.
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

// Makes new barriers visible to the copy engine.
__device__ __forceinline__ void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Orders this thread's accesses to shared memory before what the copy engine and products do there.
__device__ __forceinline__ void FenceSharedCopies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Tells the second cache that lines are read once, so that what is read again stays.
__device__ __forceinline__ uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Stores 16 bytes at an address in shared memory.
__device__ __forceinline__ void StoreShared(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// Copies bytes that follow each other: a multiple of 16, as are both addresses.
__device__ __forceinline__ void CopyBytes(void* shared, const void* global, int bytes,
                                          Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(barrier.Address())
      : "memory");
}

// Stores into a shared variable of the cluster's block `rank`, whose barrier counts the four bytes.
__device__ __forceinline__ void StoreAt(int rank, float& variable, float value, Barrier& barrier) {
  asm volatile(
      "{\n"
      "  .reg .b32 remote, remote_barrier;\n"
      "  mapa.shared::cluster.u32 remote, %0, %3;\n"
      "  mapa.shared::cluster.u32 remote_barrier, %2, %3;\n"
      "  st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [remote], %1,"
      " [remote_barrier];\n"
      "}" ::"r"(SharedAddress(&variable)),
      "f"(value), "r"(barrier.Address()), "r"(rank)
      : "memory");
}

// Copies bytes of this block's shared memory to the cluster's block `rank`, where `there` is in its
// own; its barrier counts them. A multiple of 16, as are both addresses. Both blocks must run until
// the copy is done.
__device__ __forceinline__ void SendBytes(int rank, void* there, const void* here, int bytes,
                                          Barrier& barrier) {
  asm volatile(
      "{\n"
      "  .reg .b32 remote, remote_barrier;\n"
      "  mapa.shared::cluster.u32 remote, %0, %4;\n"
      "  mapa.shared::cluster.u32 remote_barrier, %3, %4;\n"
      "  cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [remote], [%1], %2,"
      " [remote_barrier];\n"
      "}" ::"r"(SharedAddress(there)),
      "r"(SharedAddress(here)), "r"(bytes), "r"(barrier.Address()), "r"(rank)
      : "memory");
}

// Copies a box of a map made by MakeBoxes: x, y, z, w are its first ones, the innermost first.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap& map, int x, int y,
                                        int z, int w, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address())
      : "memory");
}

// The same, of what is read once.
__device__ __forceinline__ void CopyBoxOnce(uint32_t shared, const CUtensorMap& map, int x, int y,
                                            int z, int w, Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address()), "l"(policy)
      : "memory");
}

// As CopyBox, into the shared memory of all blocks of the cluster whose bits `ranks` has, at the
// same address in each; each block's barrier counts its own bytes.
__device__ __forceinline__ void CopyBoxToCluster(uint32_t shared, const CUtensorMap& map, int x,
                                                 int y, int z, int w, Barrier& barrier,
                                                 uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address()), "h"(ranks)
      : "memory");
}

// Copies a box from shared memory to where its map has it; what lies outside of the tensor is left
// out. What other threads wrote to it comes before by FenceSharedCopies and a barrier.
__device__ __forceinline__ void StoreBox(const CUtensorMap& map, uint32_t shared, int x, int y,
                                         int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared)
      : "memory");
}

// Waits until at most `kPending` of this thread's stores still read their boxes.
template <int kPending>
__device__ __forceinline__ void WaitStores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Copies a box of a map made by MakeRowTiles: `chunk` and `row` are its first ones.
__device__ __forceinline__ void CopyTile(void* shared, const CUtensorMap& map, int chunk, int row,
                                         Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(0), "r"(row), "r"(chunk), "r"(barrier.Address()), "l"(policy)
      : "memory");
}

}  // namespace eet
