// core/mma.cuh, emulated.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"
#include "cuda_runtime.h"

namespace eet {

using emulated::Where;

// Two elements of an operand.
template <typename T>
struct OperandPair {
  T first, second;

  static OperandPair Of(uint32_t word) { return std::bit_cast<OperandPair>(word); }
};

template <typename T>
void MmaM16N8K16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 std::type_identity<T>, Where where = Where::current()) {
  struct Lane {
    float* c;
    const uint32_t *a, *b;
  } mine{c, a, b};
  emulated::Meet("a product of a warp", ~0u, mine, where, [](const auto& lanes) {
    float rows[16][16], columns[8][16];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        const auto word = OperandPair<T>::Of(lanes[lane]->a[i]);
        float* row = &rows[group + i % 2 * 8][pair + i / 2 * 8];
        row[0] = float(word.first);
        row[1] = float(word.second);
      }
      for (int i = 0; i < 2; ++i) {
        const auto word = OperandPair<T>::Of(lanes[lane]->b[i]);
        columns[group][pair + i * 8] = float(word.first);
        columns[group][pair + i * 8 + 1] = float(word.second);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const float* row = rows[lane / 4 + i / 2 * 8];
        const float* column = columns[lane % 4 * 2 + i % 2];
        float sum = lanes[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
        lanes[lane]->c[i] = sum;
      }
    }
  });
}

template <typename T>
uint32_t PackPair(float low, float high, std::type_identity<T>) {
  return std::bit_cast<uint32_t>(OperandPair<T>{T(low), T(high)});
}

inline uint32_t SharedAddress(const void* pointer) { return emulated::AddressOf(pointer); }

// Calls give(matrix, row, its eight elements, lanes) for each row of four matrices.
template <typename F>
void LoadMatrixRows(uint32_t (&matrices)[4], const void* row, Where where, const F& give) {
  struct Lane {
    uint32_t* matrices;
    const void* row;
  } mine{matrices, row};
  emulated::Check(reinterpret_cast<uintptr_t>(row) % 16 == 0, "a matrix's row is misaligned");
  emulated::Meet("a load of matrices", ~0u, mine, where, [&](const auto& lanes) {
    for (int i = 0; i < 32; ++i) {
      uint16_t elements[8];
      std::memcpy(elements, lanes[i]->row, sizeof(elements));
      const auto at = [&](int lane) {
        return reinterpret_cast<uint16_t*>(&lanes[lane]->matrices[i / 8]);
      };
      give(i % 8, elements, at);
    }
  });
}

inline void LoadMatrices(uint32_t (&matrices)[4], const void* row, Where where = Where::current()) {
  LoadMatrixRows(matrices, row, where, [](int i, const uint16_t (&elements)[8], const auto& at) {
    for (int j = 0; j < 8; ++j) at(4 * i + j / 2)[j % 2] = elements[j];
  });
}

inline void LoadMatrices(uint32_t (&matrices)[4], uint32_t row_address,
                         Where where = Where::current()) {
  LoadMatrices(matrices, emulated::At(*emulated::current->block, row_address, 16), where);
}

inline void LoadMatricesTransposed(uint32_t (&matrices)[4], const void* row,
                                   Where where = Where::current()) {
  LoadMatrixRows(matrices, row, where, [](int i, const uint16_t (&elements)[8], const auto& at) {
    for (int j = 0; j < 8; ++j) at(4 * j + i / 2)[i % 2] = elements[j];
  });
}

inline void StoreMatrices(const uint32_t (&matrices)[4], uint32_t row_address,
                          Where where = Where::current()) {
  struct Lane {
    const uint32_t* matrices;
    uint32_t row_address;
  };
  Lane mine{matrices, row_address};
  emulated::Meet("a store of matrices", ~0u, mine, where, [](const auto& lanes) {
    for (int i = 0; i < 32; ++i) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const uint32_t row = lanes[8 * matrix + i / 4]->row_address + i % 4 * 4;
        std::memcpy(emulated::At(*emulated::current->block, row, 4), &lanes[i]->matrices[matrix],
                    4);
      }
    }
  });
}

inline uint32_t TransposeMatrix(uint32_t matrix, Where where = Where::current()) {
  emulated::Meet("a transpose", ~0u, matrix, where, [](const auto& lanes) {
    uint16_t elements[8][8];
    for (int i = 0; i < 32; ++i) std::memcpy(&elements[i / 4][i % 4 * 2], lanes[i], 4);
    for (int i = 0; i < 32; ++i) {
      const int row = i / 4, column = i % 4 * 2;
      *lanes[i] = elements[column][row] | uint32_t{elements[column + 1][row]} << 16;
    }
  });
  return matrix;
}

inline void CopyAsync16(void* shared, const void* global, bool valid) {
  emulated::Check(reinterpret_cast<uintptr_t>(shared) % 16 == 0 &&
                      (!valid || reinterpret_cast<uintptr_t>(global) % 16 == 0),
                  "an asynchronous copy is misaligned");
  emulated::At(*emulated::current->block, SharedAddress(shared), 16);
  emulated::current->copies.Start([=] {
    if (valid) {
      std::memcpy(shared, global, 16);
    } else {
      std::memset(shared, 0, 16);
    }
  });
}

inline void CommitCopies() { emulated::current->copies.Commit(); }

template <int kPending>
void WaitCopies() {
  emulated::current->copies.Await(kPending);
}

}  // namespace eet
