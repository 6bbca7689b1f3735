// core/bulk_copy.cuh, emulated. What a copy brings is there, and counted, at any time after its
// order.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/mma.cuh"
#include "core/reduce.cuh"

namespace eet {

#ifdef EET_RACECHECK
constexpr bool kAllLanesArrive = true;
#else
constexpr bool kAllLanesArrive = false;
#endif

class Barrier {
 public:
  void Init(int arrivals) {
    expected_ = pending_ = int16_t(arrivals);
    bytes_ = 0;
    phase_ = 0;
  }

  void InitForWarps(int warps) { Init(kAllLanesArrive ? warps * kWarpSize : warps); }

  void Arrive() { ArriveIn(*emulated::current->block, this); }

  void ArriveAt(int rank) {
    emulated::Block& block = *emulated::current->block->grid->live.at(rank);
    ArriveIn(block, reinterpret_cast<Barrier*>(emulated::At(block, Address(), sizeof(*this))));
  }

  void ArriveExpecting(int bytes) {
    bytes_ += bytes;
    Arrive();
  }

  void ArriveAsWarp(int lane) {
    if (kAllLanesArrive || lane == 0) Arrive();
  }

  void ArriveAsWarpExpecting(int lane, int bytes) {
    if (lane == 0) {
      ArriveExpecting(bytes);
    } else if (kAllLanesArrive) {
      Arrive();
    }
  }

  bool TryWait(int parity) {
    if (phase_ == parity) emulated::Yield();
    return phase_ != parity;
  }

  void Wait(int parity, emulated::Where where = emulated::Where::current()) {
    emulated::Check(expected_ > 0, "a barrier in shared memory is not initialised");
    while (phase_ == parity) emulated::WaitFor("a barrier in shared memory", this, where);
  }

  uint32_t Address() const { return SharedAddress(this); }

  // For the copy engine.
  void Count(emulated::Block& block, int bytes) {
    bytes_ -= bytes;
    MaybeEnd(block);
  }

 private:
  static void ArriveIn(emulated::Block& block, Barrier* barrier) {
    emulated::Check(!block.Ended(), "an arrival in a block that has ended");
    emulated::Check(barrier->expected_ > 0, "a barrier in shared memory is not initialised");
    emulated::Check(barrier->pending_ > 0, "too many arrivals at a barrier in shared memory");
    --barrier->pending_;
    barrier->MaybeEnd(block);
  }

  void MaybeEnd(emulated::Block& block) {
    if (pending_ > 0 || bytes_ != 0) return;
    pending_ = expected_;
    phase_ ^= 1;
    emulated::WakeAll(block, this);
  }

  int16_t expected_, pending_;  // arrivals
  int32_t bytes_ : 31;
  uint32_t phase_ : 1;  // parity
};

static_assert(sizeof(Barrier) == 8);

inline void FenceBarriers() {}
inline void FenceSharedCopies() {}
inline uint64_t ReadOncePolicy() { return 0; }

inline void StoreShared(uint32_t address, const uint4& words) {
  std::memcpy(emulated::At(*emulated::current->block, address, 16), &words, 16);
}

void CopyBytes(void* shared, const void* global, int bytes, Barrier& barrier);
void SendBytes(int rank, void* there, const void* here, int bytes, Barrier& barrier);
void StoreAt(int rank, float& variable, float value, Barrier& barrier);

// A box from `first` on, into the blocks of the cluster that `ranks` has bits of.
void OrderBox(uint32_t shared, const CUtensorMap& map, const int (&first)[4], Barrier& barrier,
              unsigned ranks);

// The bit of this block.
inline unsigned ThisRank() {
  const auto& live = emulated::current->block->grid->live;
  return 1u << (std::find(live.begin(), live.end(), emulated::current->block) - live.begin());
}

inline void CopyBox(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                    Barrier& barrier) {
  OrderBox(shared, map, {x, y, z, w}, barrier, ThisRank());
}

inline void CopyBoxOnce(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                        Barrier& barrier, uint64_t) {
  CopyBox(shared, map, x, y, z, w, barrier);
}

inline void CopyBoxToCluster(uint32_t shared, const CUtensorMap& map, int x, int y, int z, int w,
                             Barrier& barrier, uint16_t ranks) {
  OrderBox(shared, map, {x, y, z, w}, barrier, ranks);
}

// At once: what is written to shared memory too early is not noticed.
void StoreBox(const CUtensorMap& map, uint32_t shared, int x, int y, int z, int w);

template <int kPending>
void WaitStores() {}

inline void CopyTile(void* shared, const CUtensorMap& map, int chunk, int row, Barrier& barrier,
                     uint64_t) {
  OrderBox(SharedAddress(shared), map, {0, row, chunk, 0}, barrier, ThisRank());
}

}  // namespace eet
