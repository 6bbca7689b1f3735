// A tile of rows in shared memory, laid out for ldmatrix.
#pragma once

namespace eet {

constexpr int kChunk = 8;  // elements of a 16-byte access, of a 2-byte type

// A tile of rows in shared memory. Chunks are permuted within a row so that the same chunk of eight
// rows, which ldmatrix reads at once, lies in eight different groups of banks.
template <typename T, int kDim>
struct SharedTile {
  static constexpr int kChunks = kDim / kChunk;
  static_assert(kDim % 32 == 0);
  T* data;  // [rows, kDim]

  __device__ T* Chunk(unsigned row, unsigned chunk) const {
    const unsigned swizzle = kChunks % 8 == 0 ? row % 8 : row / 2 % 4;
    return data + (row * kChunks + (chunk ^ swizzle)) * kChunk;
  }
};

}  // namespace eet
