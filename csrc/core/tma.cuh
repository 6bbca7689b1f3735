// TMA, Hopper's tensor memory accelerator, and bulk copies: one thread issues a copy of kilobytes
// into shared memory, an mbarrier counts them in.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/mbarrier.cuh"

namespace eet {

// Orders this thread's accesses to shared memory before those of TMA and wgmma.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Tells L2 that lines are read once, so that what is read again stays.
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
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, int bytes,
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
__device__ __forceinline__ void BulkCopyTo(int rank, void* there, const void* here, int bytes,
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

// Loads a box of a map made by MakeBoxMap: x, y, z, w are its first ones, the innermost first.
__device__ __forceinline__ void TmaLoad(uint32_t shared, const CUtensorMap& map, int x, int y,
                                        int z, int w, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address())
      : "memory");
}

// The same, of what is read once.
__device__ __forceinline__ void TmaLoadOnce(uint32_t shared, const CUtensorMap& map, int x, int y,
                                            int z, int w, Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address()), "l"(policy)
      : "memory");
}

// As TmaLoad, into the shared memory of all blocks of the cluster whose bits `ranks` has, at the
// same address in each; each block's barrier counts its own bytes.
__device__ __forceinline__ void TmaLoadMulticast(uint32_t shared, const CUtensorMap& map, int x,
                                                 int y, int z, int w, Barrier& barrier,
                                                 uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier.Address()), "h"(ranks)
      : "memory");
}

// Stores a box of shared memory where its map has it; what lies outside of the tensor is left
// out. What other threads wrote to it comes before by FenceAsyncProxy and a barrier.
__device__ __forceinline__ void TmaStore(const CUtensorMap& map, uint32_t shared, int x, int y,
                                         int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(w), "r"(shared)
      : "memory");
}

// Waits until at most `kPending` of this thread's stores still read their boxes.
template <int kPending>
__device__ __forceinline__ void WaitTmaStores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Loads a box of a map made by MakeTileMap: `chunk` and `row` are its first ones.
__device__ __forceinline__ void TmaLoadTile(void* shared, const CUtensorMap& map, int chunk,
                                            int row, Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(0), "r"(row), "r"(chunk), "r"(barrier.Address()), "l"(policy)
      : "memory");
}

}  // namespace eet
