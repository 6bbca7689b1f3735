// A table of where a step's time goes, made of the moments that its blocks have noted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "ops/decode_step_profile.cuh"

namespace eet::profile {

// Zero for no samples.
template <typename T>
T Median(std::vector<T> samples) {
  if (samples.empty()) return {};
  std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
  return samples[samples.size() / 2];
}

// What was noted in a step.
class Moments {
 public:
  static constexpr int kBlocks = int(StepProfile::kBlocks);

  Moments(std::vector<int64_t> values, int layers) : values_(std::move(values)), layers_(layers) {}

  int layers() const { return layers_; }

  // 0 where the block has no part in the phase.
  int64_t At(int layer, Phase phase, StepEvent event, int block) const {
    const auto noted = [&](StepEvent e) {
      return values_[StepProfile::MomentAt(layer, phase, e, block)];
    };
    // A finisher without anything to finish notes so.
    return event == StepEvent::kReported || noted(StepEvent::kBegan) ? noted(event) : 0;
  }

  // The block that is last with a phase, -1 where nobody has a part in it.
  int Slowest(int layer, Phase phase) const {
    int slowest = -1;
    int64_t last = 0;
    for (int block = 0; block < kBlocks; ++block) {
      const int64_t moment = At(layer, phase, StepEvent::kFinished, block);
      if (moment <= last) continue;
      slowest = block;
      last = moment;
    }
    return slowest;
  }

  // When the first block began with the step.
  int64_t Begin() const {
    int64_t first = std::numeric_limits<int64_t>::max();
    for (int block = 0; block < kBlocks; ++block) {
      const int64_t moment = At(0, Phase::kQkv, StepEvent::kBegan, block);
      if (moment) first = std::min(first, moment);
    }
    return first;
  }

 private:
  std::vector<int64_t> values_;
  int layers_;
};

// One line: a phase in all layers, in microseconds from the end of the phase before.
struct PhaseTimes {
  std::vector<double> events[kStepEvents];  // of all blocks; kReported: of the phase before
  std::vector<double> slowest;              // of each layer
  std::map<int, int> slowest_blocks;        // how often each

  void Add(const Moments& moments, int layer, Phase phase, int64_t end_before) {
    const auto since = [&](int64_t moment) { return double(moment - end_before) / 1000; };
    const bool first = phase == Phase::kQkv;
    for (int block = 0; block < Moments::kBlocks; ++block) {
      for (int event = 0; event < kStepEvents; ++event) {
        const bool before = StepEvent(event) == StepEvent::kReported;
        if (before && first && layer == 0) continue;
        const int64_t moment =
            !before ? moments.At(layer, phase, StepEvent(event), block)
            : first ? moments.At(layer - 1, Phase::kDown, StepEvent(event), block)
                    : moments.At(layer, Phase(int(phase) - 1), StepEvent(event), block);
        if (moment) events[event].push_back(since(moment));
      }
    }
    const int block = moments.Slowest(layer, phase);
    slowest.push_back(since(moments.At(layer, phase, StepEvent::kFinished, block)));
    ++slowest_blocks[block];
  }

  void Print(const char* name) const {
    if (slowest.empty()) return;
    std::printf("%-9s", name);
    for (const StepEvent event : {StepEvent::kBegan, StepEvent::kReported, StepEvent::kStaged,
                                  StepEvent::kMultiplied, StepEvent::kFinished}) {
      const std::vector<double>& samples = events[int(event)];
      if (samples.empty()) {
        std::printf("%12s", "-");
      } else {
        std::printf("%12.2f", Median(samples));
      }
    }
    const auto [block, times] =
        *std::max_element(slowest_blocks.begin(), slowest_blocks.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; });
    std::printf("%12.2f   %d (%d of %zu)\n", Median(slowest), block, times, slowest.size());
  }
};

inline void PrintTable(const Moments& moments) {
  const char* names[] = {"qkv", "partials", "attended", "out", "up", "down"};
  PhaseTimes first, phases[kPhases], head;
  const int64_t begin = moments.Begin();
  int64_t end = begin;
  for (int layer = 0; layer <= moments.layers(); ++layer) {
    for (int i = 0; i < kPhases; ++i) {
      const Phase phase = Phase(i);
      const int slowest = moments.Slowest(layer, phase);
      if (slowest < 0) continue;
      PhaseTimes& times = layer == moments.layers() ? head : layer + i == 0 ? first : phases[i];
      times.Add(moments, layer, phase, end);
      end = moments.At(layer, phase, StepEvent::kFinished, slowest);
    }
  }
  std::printf("%-9s%12s%12s%12s%12s%12s%12s   %s\n", "us", "began", "waited", "staged",
              "multiplied", "finished", "slowest", "which is mostly block");
  first.Print("first qkv");
  for (int i = 0; i < kPhases; ++i) phases[i].Print(names[i]);
  head.Print("head");
  double layer = 0;
  for (const PhaseTimes& times : phases) layer += Median(times.slowest);
  std::printf("a layer %.2f us, from the first begin to the last finish %.1f us\n", layer,
              double(end - begin) / 1000);
}

}  // namespace eet::profile
