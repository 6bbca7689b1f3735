// How operands of wgmma lie in shared memory.
#pragma once

#include <cstdint>

namespace eet {

// A tile is rows of `kSpan` bytes one after the other, 16-byte pieces permuted within the row as
// TMA's swizzle of that span does it.
template <int kSpan>
struct Swizzle {
  static_assert(kSpan == 32 || kSpan == 64 || kSpan == 128);
  static constexpr uint64_t kMode = kSpan == 128 ? 1 : kSpan == 64 ? 2 : 3;
  static constexpr int kAtomBytes = 8 * kSpan;  // eight rows, in which the pattern repeats
};

// The descriptor of an operand in shared memory. `leading`: bytes from one group of kSpan / 2
// columns to the next where columns are the product's rows or columns (transposed operands).
template <int kSpan>
__device__ __forceinline__ uint64_t WgmmaDescriptor(uint32_t address, uint32_t leading = 16) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{leading >> 4} << 16 |
         uint64_t{Swizzle<kSpan>::kAtomBytes >> 4} << 32 | Swizzle<kSpan>::kMode << 62;
}

}  // namespace eet
