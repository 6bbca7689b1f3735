// How blocks of the decode step leave results for each other, and how long they wait.
//
// Results go through memory that is all ones when the step begins. A word is there when it is no
// longer all ones, which no rounding of a float makes, so it needs no fence and no flag: a release
// costs 2 to 4 us while the memory is saturated, a relaxed store 0.2. Looking at data that is not
// there yet disturbs its arrival, so each phase also has a counter, looked at by one thread of each
// block, which says when to begin to look at the data. It is a hint: it may fire early.
#pragma once

#include <cstdint>

#include "core/reduce.cuh"

namespace eet {

// Read once: the special registers are slow, and the compiler would read them again and again.
__device__ __forceinline__ int LaneId() {
  int lane;
  asm volatile("mov.u32 %0, %laneid;" : "=r"(lane));
  return lane;
}

__device__ __forceinline__ int WarpId() {
  return __shfl_sync(kFullMask, int(threadIdx.x) / kWarpSize, 0);
}

constexpr uint32_t kAbsent = 0xffffffffu;

__device__ __forceinline__ uint32_t LoadRelaxed(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ __forceinline__ uint4 LoadRelaxed4(const uint32_t* words) {
  uint4 values;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(values.x), "=r"(values.y), "=r"(values.z), "=r"(values.w)
               : "l"(words)
               : "memory");
  return values;
}

__device__ __forceinline__ void StoreRelaxed(uint32_t* word, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ void StoreRelaxed4(uint32_t* words, uint4 values) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(words), "r"(values.x),
               "r"(values.y), "r"(values.z), "r"(values.w)
               : "memory");
}

// Counts up a counter that began at all ones.
__device__ __forceinline__ void CountRelaxed(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ bool IsThere(uint32_t word) { return word != kAbsent; }

__device__ __forceinline__ bool IsThere(const uint4& words) {
  return IsThere(words.x) && IsThere(words.y) && IsThere(words.z) && IsThere(words.w);
}

__device__ __forceinline__ int64_t Nanoseconds() {
  int64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

// Waits that end. Once one has expired, all others of the block end at once: the step runs on
// without waiting, on whatever it finds, and its status says that the results are worthless.
class Watch {
 public:
  __device__ Watch(int64_t nanoseconds, volatile int* expired, int32_t* status)
      : limit_(nanoseconds), expired_(expired), status_(status) {}

  // Looks until `condition()`; `what` is kept as the status if that takes too long. Conditions are
  // compiled once, in place: what they load stays in registers.
  template <typename Condition>
  __device__ __forceinline__ void Until(Condition&& condition, int what) {
    int64_t start = 0;
    for (int looks = 0; !condition(); ++looks) {
      if (expired()) return;
      // Reading the clock takes longer than a look.
      if (looks % 64 != 63 && limit_ > 0) continue;
      const int64_t now = Nanoseconds();
      if (start == 0) start = now;
      if (now - start >= limit_) {
        *expired_ = 1;
        *status_ = 1 + what;
      }
    }
  }

  __device__ bool expired() const { return *expired_; }

 private:
  int64_t limit_;
  volatile int* expired_;
  int32_t* status_;
};

}  // namespace eet
