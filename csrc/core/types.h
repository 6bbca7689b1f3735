// The floating types of tensors: bfloat16 and float16 for both platforms, explicitly convertible
// to and from float.
#pragma once

#ifdef EET_CUDA

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define EET_HOST_DEVICE __host__ __device__ __forceinline__

namespace eet {
using bfloat16 = __nv_bfloat16;
using float16 = __half;
}  // namespace eet

#else

#include <bit>
#include <cstdint>

#define EET_HOST_DEVICE inline

namespace eet {

#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using float16 = __fp16;  // the same format: this compiler has no _Float16 in C++
#else
using float16 = _Float16;
#endif

// The upper half of a float, rounded to nearest even.
struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? uint16_t((word >> 16) | 0x40u)
                  : uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

}  // namespace eet

#endif
