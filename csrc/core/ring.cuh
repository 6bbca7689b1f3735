// A ring of slots in shared memory, each with barriers.
#pragma once

namespace eet {

// A place in a ring and the parity of its barriers.
template <int kSlots>
struct RingSlot {
  int index = 0, parity = 0;

  __device__ __forceinline__ void Advance() {
    if (++index == kSlots) {
      index = 0;
      parity ^= 1;
    }
  }
};

}  // namespace eet
