// What the decode step's attention works on: tiles of the cache in shared memory, and heads of a
// token that are normed and rotated.
#pragma once

#include "ops/decode_step_block.cuh"

namespace eet {

// Keys, or values, of a tile, as MakeTileMap lays them out.
template <typename T, int kDim>
struct CacheTile {
  static constexpr int kKeys = int(StepTileKeys(kDim));
  static constexpr int kChunk = ChunkColumns(kDim), kPieces = kChunk / 8;
  static constexpr int kHalf = kKeys * kDim * 2, kBytes = 2 * kHalf;
  static_assert(kBytes <= kTileBytes && kHalf % 1024 == 0);
  static constexpr int kStrip = 16;  // keys of one product

  char* data;

  __device__ T* Piece(int key, int piece) const {
    const int swizzled = piece % kPieces ^ key / (8 / kPieces) % kPieces;
    return reinterpret_cast<T*>(data + piece / kPieces * (kKeys * kChunk * 2) + key * (kChunk * 2) +
                                swizzled * 16);
  }
};

// What becomes of two adjacent elements of a query or a key: norm, then rotation, rounded as by
// rotary_append.
template <typename T>
struct HeadTransform {
  const float* pairs;  // [rotary_dim], cosines and sines of the token's position
  int rotary_dim;
  bool normed;
  float inverse;  // of the root of the head's mean square

  // `scale`: the norm's weights of both.
  __device__ uint32_t operator()(uint32_t word, uint32_t scale, int column) const {
    constexpr std::type_identity<T> kType;
    const T* elements = reinterpret_cast<const T*>(&word);
    const T* scales = reinterpret_cast<const T*>(&scale);
    float x0 = float(elements[0]), x1 = float(elements[1]);
    if (normed) {
      x0 = float(T(x0 * inverse * float(scales[0])));
      x1 = float(T(x1 * inverse * float(scales[1])));
    }
    if (column < rotary_dim) {
      const float2 at = *reinterpret_cast<const float2*>(pairs + column);
      const float rotated = x0 * at.x - x1 * at.y;
      x1 = x1 * at.x + x0 * at.y;
      x0 = rotated;
    }
    return PackPair(x0, x1, kType);
  }
};

template <typename T>
__device__ __forceinline__ float SquaresOf(uint32_t word) {
  const T* elements = reinterpret_cast<const T*>(&word);
  return float(elements[0]) * float(elements[0]) + float(elements[1]) * float(elements[1]);
}

}  // namespace eet
