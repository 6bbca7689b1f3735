// How TMA, Hopper's tensor memory accelerator, finds a box of a tensor and lays it out in shared
// memory. Elements have 2 bytes. What lies outside the tensor becomes zeros. The makers return
// false, with the reason left for the handler, where the driver refuses.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace eet {

constexpr int kChunkColumns = 64;  // 128 bytes: one line of shared memory's banks

// The widest chunk that `cols`, a multiple of 16, are a multiple of.
constexpr int ChunkColumns(int64_t cols) { return cols % 64 == 0 ? 64 : cols % 32 == 0 ? 32 : 16; }

// Boxes of `box_rows` rows and `box_chunks` chunks, of c = ChunkColumns(cols), of a 16-byte aligned
// matrix [rows, cols]. In shared memory a box is [box_chunks, box_rows, c], 1024-byte aligned, and
// of the n = c / 8 pieces of 16 bytes in a row, piece p of row r lies at p ^ r / (8 / n) % n, so
// that eight rows' pieces are in eight groups of banks.
bool MakeTileMap(CUtensorMap* map, const void* matrix, int64_t rows, int64_t cols, int box_rows,
                 int box_chunks);

// Boxes of a tensor of four dimensions, the innermost first, whose innermost is contiguous. Strides
// are of the outer three in elements, multiples of 8. A row of a box has 16, 32 or 64 elements of
// the innermost dimension; rows lie one after the other, their 16-byte pieces permuted within the
// row as core/wgmma.cuh's operands want them.
struct BoxShape {
  int64_t sizes[4], strides[3];
  int box[4];
};

bool MakeBoxMap(CUtensorMap* map, const void* tensor, const BoxShape& shape);

}  // namespace eet
