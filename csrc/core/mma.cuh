// Tensor cores of sm_80 and later: one warp's 16x8x16 product, how shared memory becomes its
// operands, and asynchronous copies from global to shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/types.h"

namespace eet {

// c += a b. With group = lane / 4 and pair = lane % 4 * 2, a lane holds
//   a[0..3]: rows group, group + 8, group, group + 8; columns pair and pair + 1, + 8 in a[2], a[3]
//   b[0..1]: rows pair and pair + 1, + 8 in b[1]; column group
//   c[0..3]: row group, columns pair and pair + 1; row group + 8, the same columns
__device__ __forceinline__ void MmaM16N8K16(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2], std::type_identity<bfloat16>) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void MmaM16N8K16(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2], std::type_identity<float16>) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two neighbours of an operand row, the first in the lower half.
__device__ __forceinline__ uint32_t PackPair(float low, float high, std::type_identity<bfloat16>) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint32_t PackPair(float low, float high, std::type_identity<float16>) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads four 8x8 matrices of 2-byte elements. Lane i gives the address of row i % 8 of matrix
// i / 8, and receives of each its elements lane % 4 * 2 and the next of row lane / 4.
__device__ __forceinline__ void LoadMatrices(uint32_t (&matrices)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row_address)
               : "memory");
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&matrices)[4], const void* row) {
  LoadMatrices(matrices, SharedAddress(row));
}

// The same of each matrix' transpose.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// Stores four such matrices, whose elements the lanes hold as LoadMatrices gives them. sm_90.
__device__ __forceinline__ void StoreMatrices(const uint32_t (&matrices)[4], uint32_t row_address) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
      "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
      : "memory");
}

// The transpose of an 8x8 matrix held as the above give it.
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t matrix) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
  return transposed;
}

// Starts to copy 16 aligned bytes; writes zeros instead, without reading, where not `valid`.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes the group of this thread's copies started since the last one.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `kPending` groups of this thread are under way. Other threads' copies need a
// barrier as well.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace eet
