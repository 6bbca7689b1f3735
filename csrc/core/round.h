// Divisions that round up.
#pragma once

#include "core/types.h"

namespace eet {

// The least n with n * size >= count, of numbers that are not negative.
template <typename A, typename B>
constexpr EET_HOST_DEVICE auto CeilDiv(A count, B size) {
  return (count + size - 1) / size;
}

// The least multiple of `step` that is not below `size`.
template <typename A, typename B>
constexpr EET_HOST_DEVICE auto RoundUp(A size, B step) {
  return CeilDiv(size, step) * step;
}

}  // namespace eet
