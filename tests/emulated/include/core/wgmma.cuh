// core/wgmma.cuh, emulated. Each warp computes its own sixteen rows, at any time between the
// product's start and the wait for it: until then its operands must stay as they are.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "core/mma.cuh"
#include "core/swizzle.cuh"

namespace eet {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;

inline void WgmmaFence() {}

inline void WgmmaCommit(Where where = Where::current()) {
  emulated::Meet("the end of a group of products", ~0u, where, where,
                 [](const auto&) { emulated::ThisWarp().products.Commit(); });
}

template <int kCount>
void Pin(float (&)[kCount]) {}
template <int kCount>
void Pin(uint32_t (&)[kCount]) {}

template <int kPending>
void WgmmaWait(Where where = Where::current()) {
  emulated::Meet("a wait for products", ~0u, where, where,
                 [](const auto&) { emulated::ThisWarp().products.Await(kPending); });
}

template <int kPending, int kCount>
void WgmmaWait(float (&)[kCount], Where where = Where::current()) {
  WgmmaWait<kPending>(where);
}

// What a descriptor says, and where an element is.
struct OperandView {
  explicit OperandView(uint64_t descriptor)
      : start(uint32_t(descriptor & 0x3fff) << 4),
        leading(uint32_t(descriptor >> 16 & 0x3fff) << 4),
        stride(uint32_t(descriptor >> 32 & 0x3fff) << 4) {
    const unsigned mode = unsigned(descriptor >> 62);
    emulated::Check(mode != 0, "an operand without a swizzle");
    span = mode == 1 ? 128 : mode == 2 ? 64 : 32;
  }

  template <typename T>
  float Load(uint32_t offset) const {
    const uint32_t address = emulated::Swizzled(start + offset, span);
    T element;
    std::memcpy(&element, emulated::At(*emulated::current->block, address, 2), 2);
    return float(element);
  }

  // Rows run along the summed dimension.
  template <typename T>
  float OfRow(int row, int k) const {
    return Load<T>(row / 8 * stride + row % 8 * span + 2 * k);
  }

  // Rows run along the product's columns.
  template <typename T>
  float OfColumn(int k, int column) const {
    const int chunk = int(span) / 2;
    return Load<T>(column / chunk * leading + k / 8 * stride + k % 8 * span + column % chunk * 2);
  }

  uint32_t start, leading, stride, span;
};

template <typename T, int kN>
struct Wgmma {
  static void FromShared(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add,
                     Where where = Where::current()) {
    Lane mine{d, {}};
    emulated::Meet("a product", ~0u, mine, where, [=](const auto& lanes) {
      const int first = emulated::current->number % kGroupThreads / 32 * 16;
      Start(lanes, add, [=](const auto&, float (&rows)[16][16], float (&columns)[16][kN]) {
        const OperandView left(a), right(b);
        for (int i = 0; i < 16; ++i) {
          for (int k = 0; k < 16; ++k) rows[i][k] = left.OfRow<T>(first + i, k);
          for (int n = 0; n < kN; ++n) columns[i][n] = right.OfRow<T>(n, i);
        }
      });
    });
  }

  static void FromRegisters(float (&d)[kN / 2], const uint32_t* a, uint64_t b,
                          Where where = Where::current()) {
    Lane mine{d, a};
    emulated::Meet("a product", ~0u, mine, where, [=](const auto& lanes) {
      Start(lanes, true, [=](const auto& of, float (&rows)[16][16], float (&columns)[16][kN]) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const auto word = OperandPair<T>::Of(of[lane].a[i]);
            float* row = &rows[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
            row[0] = float(word.first);
            row[1] = float(word.second);
          }
        }
        const OperandView right(b);
        for (int k = 0; k < 16; ++k) {
          for (int n = 0; n < kN; ++n) columns[k][n] = right.OfColumn<T>(k, n);
        }
      });
    });
  }

 private:
  struct Lane {
    float* d;
    const uint32_t* a;
  };

  // load(lanes, rows, columns) brings the operands.
  template <typename F>
  static void Start(const std::array<Lane*, 32>& lanes, bool add, const F& load) {
    std::array<Lane, 32> of;
    for (int lane = 0; lane < 32; ++lane) of[lane] = *lanes[lane];
    emulated::ThisWarp().products.Start([of, add, load] {
      float rows[16][16], columns[16][kN], sums[16][kN] = {};
      load(of, rows, columns);
      for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < 16; ++k) {
          for (int n = 0; n < kN; ++n) sums[i][n] += rows[i][k] * columns[k][n];
        }
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int n = 0; n < kN / 2; ++n) {
          const int row = lane / 4 + n / 2 % 2 * 8, column = n / 4 * 8 + lane % 4 * 2 + n % 2;
          of[lane].d[n] = (add ? of[lane].d[n] : 0.0f) + sums[row][column];
        }
      }
    });
  }
};

}  // namespace eet
