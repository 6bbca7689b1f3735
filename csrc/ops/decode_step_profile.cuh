// What benchmarks/profile_step.cu sees of a decode step, and what it can change of it. Only with
// EET_STEP_PROFILE: elsewhere every knob is a constant, and traces are nothing.
#pragma once

#include <cstdint>

#include "core/instructions.cuh"
#include "core/reduce.cuh"
#include "ops/decode_step.h"

namespace eet {

#ifdef EET_STEP_PROFILE
#define EET_STEP_KNOB
#else
#define EET_STEP_KNOB static constexpr
#endif

// How far a block is with a phase.
enum class StepEvent : int {
  kBegan,       // the consumers have come to it
  kStaged,      // they have their inputs
  kMultiplied,  // and the sums over all tiles
  kFinished,    // the block's results are left for the others
  kReported,    // its lookout says that it is time to look for those of the others
};
constexpr int kStepEvents = 5;

struct StepProfile {
  static constexpr int64_t kBlocks = DecodeStepExchange::kMaxBlocks;

  // [layers + 1, kPhases, kStepEvents, kBlocks], nanoseconds, 0 where nothing was noted. The head
  // is the first phase of a layer after the last.
  EET_STEP_KNOB int64_t* moments = nullptr;

  // Tiles under way at a time, where not so many as the GPU's memory needs.
  EET_STEP_KNOB int tiles_in_flight = 0;

  // The lookout reports a phase when all arrivals but one in so many are there.
  EET_STEP_KNOB int early_part = 2;

  // What every byte of the exchange is when the step begins. With 0x3f all results and counts are
  // there already: nobody waits for anybody.
  EET_STEP_KNOB int exchange_fill = 0xff;

  // Parts of the step that can be left out where nobody waits.
  EET_STEP_KNOB bool attends = true, stages = true;

  static int64_t MomentsOf(const DecodeStepSizes& sizes) {
    return (sizes.layers + 1) * kPhases * kStepEvents * kBlocks;
  }

  EET_HOST_DEVICE static int64_t MomentAt(int layer, Phase phase, StepEvent event, int block) {
    return ((layer * kPhases + int(phase)) * kStepEvents + int(event)) * kBlocks + block;
  }
};

#ifdef EET_STEP_PROFILE

// The profile of the steps launched next.
inline StepProfile& CurrentStepProfile() {
  static StepProfile profile;
  return profile;
}

// Records when a warp came so far; of several warps' moments the last one stays.
__device__ __forceinline__ void Note(int64_t* moments, int layer, Phase phase, StepEvent event) {
  if (moments == nullptr || threadIdx.x % kWarpSize != 0) return;
  volatile int64_t* at = moments + StepProfile::MomentAt(layer, phase, event, int(blockIdx.x));
  *at = Nanoseconds();
}

#else

constexpr StepProfile CurrentStepProfile() { return {}; }
__device__ __forceinline__ void Note(int64_t*, int, Phase, StepEvent) {}

#endif

}  // namespace eet
