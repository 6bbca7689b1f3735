// core/tma.cuh, emulated. What a load brings is there, and counted, at any time after it
// was issued.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/mbarrier.cuh"

namespace eet {

inline void FenceAsyncProxy() {}
inline uint64_t ReadOncePolicy() { return 0; }

inline void StoreShared(uint32_t address, const uint4& words) {
  std::memcpy(emulated::At(*emulated::current->block, address, 16), &words, 16);
}

void BulkCopy(void* shared, const void* global, int bytes, Barrier& barrier);
void BulkCopyTo(int rank, void* there, const void* here, int bytes, Barrier& barrier);
void StoreAt(int rank, float& variable, float value, Barrier& barrier);

// A box from `first` on, into the blocks of the cluster that `ranks` has bits of.
void LoadBox(uint32_t shared, const CUtensorMap& map, const int (&first)[4], Barrier& barrier,
              unsigned ranks);

// The bit of this block.
inline unsigned ThisRank() {
  const auto& live = emulated::current->block->grid->live;
  return 1u << (std::find(live.begin(), live.end(), emulated::current->block) - live.begin());
}

inline void TmaLoad(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                    Barrier& barrier) {
  LoadBox(shared, map, {x, y, z, w}, barrier, ThisRank());
}

inline void TmaLoadOnce(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                        Barrier& barrier, uint64_t) {
  TmaLoad(shared, map, x, y, z, w, barrier);
}

inline void TmaLoadMulticast(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                             Barrier& barrier, uint16_t ranks) {
  LoadBox(shared, map, {x, y, z, w}, barrier, ranks);
}

// At once: what is written to shared memory too early is not noticed.
void TmaStore(const CUtensorMap& map, uint32_t shared, int x, int y, int z, int w);

template <int kPending>
void WaitTmaStores() {}

inline void TmaLoadTile(void* shared, const CUtensorMap& map, int chunk, int row, Barrier& barrier,
                     uint64_t) {
  LoadBox(SharedAddress(shared), map, {0, row, chunk, 0}, barrier, ThisRank());
}

}  // namespace eet
