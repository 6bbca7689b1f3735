// Bulk copies from global to shared memory and the barriers that say when they have landed (sm_90).
#pragma once

#include <cstdint>

#include "core/shared_address.cuh"

namespace eet {

// Waits end by a trap after about this many polls, so that a mistake cannot hang a GPU.
constexpr unsigned kMaxPolls = 1u << 26;

// A barrier in shared memory that threads arrive at and copies count towards.
class CopyBarrier {
 public:
  __device__ void Init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&word_)),
                 "r"(arrivals));
  }

  __device__ __forceinline__ void Arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&word_))
                 : "memory");
  }

  // Arrives, and lets the barrier wait for `bytes` of copies.
  __device__ __forceinline__ void ArriveAndExpect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     SharedAddress(&word_)),
                 "r"(bytes)
                 : "memory");
  }

  // Returns when the phase of this parity has ended.
  __device__ __forceinline__ void Wait(uint32_t parity) {
    for (unsigned polls = 0; !Ended(parity); ++polls) {
      if (polls > kMaxPolls) __trap();
    }
  }

  // Copies `bytes`, a multiple of 16, between addresses aligned to 16.
  __device__ __forceinline__ void Copy(void* shared, const void* global, uint32_t bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(SharedAddress(shared)),
        "l"(global), "r"(bytes), "r"(SharedAddress(&word_))
        : "memory");
  }

 private:
  __device__ __forceinline__ bool Ended(uint32_t parity) {
    uint32_t ended;
    asm volatile(
        "{\n"
        "  .reg .pred ended;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(SharedAddress(&word_)), "r"(parity)
        : "memory");
    return ended;
  }

  uint64_t word_;
};

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

}  // namespace eet
