// 16-byte accesses on the device.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace eet {

// As many elements as 16 bytes hold, moved by one instruction.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <typename T>
__device__ Vector<T> LoadVector(const T* pointer) {
  return *reinterpret_cast<const Vector<T>*>(pointer);
}

template <typename T>
__device__ void StoreVector(T* pointer, const Vector<T>& vector) {
  *reinterpret_cast<Vector<T>*>(pointer) = vector;
}

template <typename T>
inline bool IsAligned16(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace eet
