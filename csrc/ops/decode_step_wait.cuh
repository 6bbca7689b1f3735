// How blocks of the decode step leave results for each other, and how long they wait.
//
// Results go through memory that is all ones when the step begins. A word is there when it is no
// longer all ones, which no rounding of a float makes, so it needs no fence and no flag: a release
// costs 2 to 4 us while the memory is saturated, a relaxed store 0.2. Looking at data that is not
// there yet disturbs its arrival, so each phase also has a counter, looked at by one thread of each
// block, which says when to begin to look at the data. It is a hint: it may fire early.
#pragma once

#include <cstdint>

#include "core/instructions.cuh"
#include "core/reduce.cuh"

namespace eet {

__device__ __forceinline__ int WarpId() {
  return __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
}

constexpr uint32_t kAbsent = 0xffffffffu;

__device__ __forceinline__ bool IsThere(uint32_t word) { return word != kAbsent; }

__device__ __forceinline__ bool IsThere(const uint4& words) {
  return IsThere(words.x) && IsThere(words.y) && IsThere(words.z) && IsThere(words.w);
}

// Waits that end. Once one has expired, all others of the block end at once: the step runs on
// without waiting, on whatever it finds, and its status says that the results are worthless.
class Watch {
 public:
  __device__ Watch(uint32_t ticks, volatile int* expired, int32_t* status)
      : limit_(ticks), expired_(expired), status_(status) {}

  // Looks until `condition()`; `what` is kept as the status if that takes too long. Conditions are
  // compiled once, in place: what they load stays in registers.
  template <typename Condition>
  __device__ __forceinline__ void Until(Condition&& condition, int what) {
    for (const uint32_t start = Ticks(); !condition();) {
      if (expired()) return;
      if (Ticks() - start < limit_) continue;
      *expired_ = 1;
      *status_ = 1 + what;
    }
  }

  __device__ bool expired() const { return *expired_; }

 private:
  uint32_t limit_;
  volatile int* expired_;
  int32_t* status_;
};

}  // namespace eet
