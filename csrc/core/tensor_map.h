// How Hopper's copy engine finds a box of a row-major matrix and lays it out in shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace eet {

constexpr int kChunkColumns = 64;  // 128 bytes: one line of shared memory's banks

// Boxes of `box_rows` rows and `box_chunks` chunks of 64 columns of a matrix [rows, cols] of a
// 2-byte type; cols is a multiple of 64, the matrix 16-byte aligned. In shared memory a box is
// [box_chunks, box_rows, 64], 1024-byte aligned, and the 16-byte piece p of row r lies at p ^ r %
// 8, so that eight rows' pieces are in eight groups of banks. Chunks and rows outside the matrix
// become zeros. Returns false, with the reason left for the handler, where the driver refuses.
bool MakeRowTiles(CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols, int box_rows,
                  int box_chunks);

}  // namespace eet
