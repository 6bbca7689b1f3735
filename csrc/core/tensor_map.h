// How Hopper's copy engine finds a box of a row-major matrix and lays it out in shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace eet {

constexpr int kChunkColumns = 64;  // 128 bytes: one line of shared memory's banks

// The widest chunk that `cols`, a multiple of 16, are a multiple of.
constexpr int ChunkColumns(int64_t cols) { return cols % 64 == 0 ? 64 : cols % 32 == 0 ? 32 : 16; }

// Boxes of `box_rows` rows and `box_chunks` chunks, of c = ChunkColumns(cols), of a 16-byte aligned
// matrix [rows, cols] of a 2-byte type. In shared memory a box is [box_chunks, box_rows, c],
// 1024-byte aligned, and of the n = c / 8 pieces of 16 bytes in a row, piece p of row r lies at
// p ^ r / (8 / n) % n, so that eight rows' pieces are in eight groups of banks. Chunks and rows
// outside the matrix become zeros. Returns false, with the reason left for the handler, where the
// driver refuses.
bool MakeRowTiles(CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols, int box_rows,
                  int box_chunks);

}  // namespace eet
