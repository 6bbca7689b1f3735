// Warpgroups that do something one after the other, again and again.
#pragma once

#include "core/instructions.cuh"
#include "core/wgmma.cuh"

namespace eet {

// Each group waits for its turn and passes it on; all of its threads call these. Takes the block's
// barriers 1 to kGroups.
template <int kGroups>
struct Turns {
  int group;

  __device__ __forceinline__ void Begin() const {
    if (group == kGroups - 1) Pass();  // the first turn is group 0's
  }

  __device__ __forceinline__ void Wait() const { WaitAtBarrier<2 * kGroupThreads>(1 + group); }

  __device__ __forceinline__ void Pass() const {
    const int next = group + 1 == kGroups ? 0 : group + 1;
    ArriveAtBarrier<2 * kGroupThreads>(1 + next);
  }
};

}  // namespace eet
