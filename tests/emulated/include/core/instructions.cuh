// core/instructions.cuh, emulated.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace eet {

using emulated::Where;

// Kernels run one after the other.
inline void LaunchDependents() {}
inline void WaitForDependencies() {}

inline int LaneId() { return emulated::current->lane(); }

// Who waits that long lets others work.
inline int64_t Nanoseconds() {
  emulated::Yield();
  return emulated::current->block->grid->time;
}

constexpr int kTickBits = 16;

// A cycle takes a nanosecond.
inline uint32_t Ticks() { return uint32_t(Nanoseconds() >> kTickBits); }

inline uint4 Anew(uint4 words) { return words; }

inline float FastExp2(float x) { return std::exp2(x); }
inline float FastReciprocal(float x) { return 1.0f / x; }

template <int kThreads>
void WaitAtBarrier(int barrier, Where where = Where::current()) {
  emulated::WaitAtBarrier(barrier, kThreads, where);
}

template <int kThreads>
void ArriveAtBarrier(int barrier) {
  emulated::ArriveAtBarrier(barrier, kThreads);
}

template <int kRegisters>
void GiveRegisters() {}

template <int kRegisters>
void TakeRegisters() {}

// Others may come between any two accesses, and do now and then.
inline void LetOthers() {
  if (emulated::Random() % 16 == 0) emulated::Yield();
}

inline uint32_t LoadRelaxed(const uint32_t* word) {
  LetOthers();
  return *word;
}

inline uint4 LoadRelaxed4(const uint32_t* words) {
  LetOthers();
  return *reinterpret_cast<const uint4*>(words);
}

inline void StoreRelaxed(uint32_t* word, uint32_t value) {
  LetOthers();
  *word = value;
}

inline void CountRelaxed(uint32_t* counter) {
  LetOthers();
  ++*counter;
}

inline uint4 LoadStreamed(const void* pointer, bool valid) {
  return valid ? *static_cast<const uint4*>(pointer) : uint4{};
}

inline uint4 LoadReused(const void* pointer, bool valid) { return LoadStreamed(pointer, valid); }

}  // namespace eet
