// core/mbarrier.cuh, emulated.
#pragma once

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

  // For TMA.
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

inline void FenceBarrierInit() {}

}  // namespace eet
