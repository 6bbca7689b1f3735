// Addresses of shared memory as instructions take them.
#pragma once

#include <cstdint>

namespace eet {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace eet
