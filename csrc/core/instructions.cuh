// Single instructions of the GPU that CUDA C++ has no name for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace eet {

// Lets the next kernel of the stream start, if it was launched to start early.
__device__ __forceinline__ void LaunchDependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when all kernels before this one in the stream have ended and what they wrote is visible.
__device__ __forceinline__ void WaitForDependencies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Read once: the special registers are slow, and the compiler would read them again and again.
__device__ __forceinline__ int LaneId() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

__device__ __forceinline__ int64_t Nanoseconds() {
  int64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// The multiprocessor's cycles, in units of 2^kTickBits. The clock of Nanoseconds takes longer to
// read than most things take that are waited for.
constexpr int kTickBits = 16;

__device__ __forceinline__ uint32_t Ticks() {
  int64_t cycles;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
  return uint32_t(cycles >> kTickBits);
}

// The same words, as if they were new: the compiler computes what follows from them each time,
// where it would keep the results in more registers than they take.
__device__ __forceinline__ uint4 Anew(uint4 words) {
  asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w));
  return words;
}

// 2^x, to 2 units in the last place; results below the normal numbers are 0.
__device__ __forceinline__ float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, to 1 unit in the last place; of what is below the normal numbers it is infinite.
__device__ __forceinline__ float FastReciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Barriers of the block besides that of __syncthreads, from 1 on, each for kThreads threads: those
// that wait there and those that only arrive.
template <int kThreads>
__device__ __forceinline__ void WaitAtBarrier(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

template <int kThreads>
__device__ __forceinline__ void ArriveAtBarrier(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// Gives registers of this warpgroup back, or takes as many as others have given. All of
// its threads call it with the number that each has afterwards.
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
#if __CUDA_ARCH__ >= 900
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
#if __CUDA_ARCH__ >= 900
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Accesses to memory that other blocks access at the same time. They are whole, but in no order
// with others.
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

__device__ __forceinline__ void CountRelaxed(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// Sixteen bytes of weights, read once and not kept in L1; zeros where not `valid`.
// Volatile, so that loads stay in front of the products that they are ahead of.
__device__ __forceinline__ uint4 LoadStreamed(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

// The same of activations, which other blocks of the multiprocessor read too.
__device__ __forceinline__ uint4 LoadReused(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

}  // namespace eet
