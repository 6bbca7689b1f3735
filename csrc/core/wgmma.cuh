// wgmma, Hopper's warpgroup products: four warps multiply 64 rows by N columns, asynchronously,
// with the second operand (and maybe the first) in shared memory and float32 sums in registers.
#pragma once

#include <cstdint>

#include "core/swizzle.cuh"
#include "core/types.h"

namespace eet {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kGroupRows = 64;      // of its product

// Before the first product of a group: what the registers hold is ready.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of the products started since the last one.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Keeps the compiler from using sums, or reusing operands, before this point.
template <int kCount>
__device__ __forceinline__ void Pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kCount>
__device__ __forceinline__ void Pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Waits until at most `kPending` groups are under way: what the others read may be overwritten.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The same; `sums` are those of the groups that ended.
template <int kPending, int kCount>
__device__ __forceinline__ void WgmmaWait(float (&sums)[kCount]) {
  WgmmaWait<kPending>();
  Pin(sums);
}

// One step of 16 along the summed dimension. A thread holds of the sums [64, kN], with group =
// lane / 4 and pair = lane % 4 * 2: sums[4 * n + 2 * i + j] at row 16 * warp + group + 8 * i and
// column 8 * n + pair + j.
template <typename T, int kN>
struct Wgmma;

// Eight operands, as text and as what it stands for; and four.
#define EET_TEXTS_8 "%0, %1, %2, %3"
#define EET_SUMS_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define EET_TEXT_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define EET_TEXT_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define EET_TEXT_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define EET_TEXT_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define EET_TEXT_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define EET_TEXT_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define EET_TEXT_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define EET_TEXT_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define EET_TEXT_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define EET_TEXT_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define EET_TEXT_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define EET_TEXT_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define EET_TEXT_12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define EET_TEXT_13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define EET_TEXT_14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define EET_TEXT_15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define EET_SUMS(b)                                                                               \
  "+f"(d[8 * b]), "+f"(d[8 * b + 1]), "+f"(d[8 * b + 2]), "+f"(d[8 * b + 3]), "+f"(d[8 * b + 4]), \
      "+f"(d[8 * b + 5]), "+f"(d[8 * b + 6]), "+f"(d[8 * b + 7])
#define EET_TEXTS_16 EET_TEXT_0
#define EET_SUMS_16 EET_SUMS(0)
#define EET_TEXTS_32 EET_TEXTS_16 ", " EET_TEXT_1
#define EET_SUMS_32 EET_SUMS_16, EET_SUMS(1)
#define EET_TEXTS_64 EET_TEXTS_32 ", " EET_TEXT_2 ", " EET_TEXT_3
#define EET_SUMS_64 EET_SUMS_32, EET_SUMS(2), EET_SUMS(3)
#define EET_TEXTS_80 EET_TEXTS_64 ", " EET_TEXT_4
#define EET_SUMS_80 EET_SUMS_64, EET_SUMS(4)
#define EET_TEXTS_96 EET_TEXTS_80 ", " EET_TEXT_5
#define EET_SUMS_96 EET_SUMS_80, EET_SUMS(5)
#define EET_TEXTS_128 EET_TEXTS_96 ", " EET_TEXT_6 ", " EET_TEXT_7
#define EET_SUMS_128 EET_SUMS_96, EET_SUMS(6), EET_SUMS(7)
#define EET_TEXTS_160 EET_TEXTS_128 ", " EET_TEXT_8 ", " EET_TEXT_9
#define EET_SUMS_160 EET_SUMS_128, EET_SUMS(8), EET_SUMS(9)
#define EET_TEXTS_192 EET_TEXTS_160 ", " EET_TEXT_10 ", " EET_TEXT_11
#define EET_SUMS_192 EET_SUMS_160, EET_SUMS(10), EET_SUMS(11)
#define EET_TEXTS_256 \
  EET_TEXTS_192 ", " EET_TEXT_12 ", " EET_TEXT_13 ", " EET_TEXT_14 ", " EET_TEXT_15
#define EET_SUMS_256 EET_SUMS_192, EET_SUMS(12), EET_SUMS(13), EET_SUMS(14), EET_SUMS(15)

#define EET_WGMMA(type, name, n, i0, i1, i2, i3, i4)                                             \
  template <>                                                                                    \
  struct Wgmma<type, n> {                                                                        \
    /* d (+)= a b', rows of a and of b running along the summed dimension. */                    \
    static __device__ __forceinline__ void FromShared(float (&d)[n / 2], uint64_t a, uint64_t b, \
                                                      bool add) {                                \
      asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #i2                                  \
                   ", 0;\n"                                                                      \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name               \
                   " {" EET_TEXTS_##n "}, %" #i0 ", %" #i1 ", add, 1, 1, 0, 0;\n}"               \
                   : EET_SUMS_##n                                                                \
                   : "l"(a), "l"(b), "r"(int(add)));                                             \
    }                                                                                            \
    /* d += a b, a in registers, rows of b running along d's rows. */                            \
    static __device__ __forceinline__ void FromRegisters(float (&d)[n / 2], const uint32_t* a,   \
                                                         uint64_t b) {                           \
      asm volatile(                                                                              \
          "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                         \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." name "." name " {" EET_TEXTS_##n     \
          "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", add, 1, 1, 1;\n}"              \
          : EET_SUMS_##n                                                                         \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }                                                                                            \
  };

#define EET_WGMMAS(n, ...)                    \
  EET_WGMMA(bfloat16, "bf16", n, __VA_ARGS__) \
  EET_WGMMA(float16, "f16", n, __VA_ARGS__)

EET_WGMMAS(8, 4, 5, 6, 7, 8)
EET_WGMMAS(16, 8, 9, 10, 11, 12)
EET_WGMMAS(32, 16, 17, 18, 19, 20)
EET_WGMMAS(64, 32, 33, 34, 35, 36)
EET_WGMMAS(80, 40, 41, 42, 43, 44)
EET_WGMMAS(96, 48, 49, 50, 51, 52)
EET_WGMMAS(128, 64, 65, 66, 67, 68)
EET_WGMMAS(160, 80, 81, 82, 83, 84)
EET_WGMMAS(192, 96, 97, 98, 99, 100)
EET_WGMMAS(256, 128, 129, 130, 131, 132)

}  // namespace eet
