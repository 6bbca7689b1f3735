// Where the time of a persistent decode step goes:
//
//   profile_step MODEL BATCH CONTEXT
//
// First what a step takes, and what it would take with a part changed or left out. Then when blocks
// come how far with each phase of a layer: medians over blocks and layers, from the end of the
// phase before, which is when its slowest block has finished. profile_step.py builds it.
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "profile_step_model.cuh"
#include "profile_step_table.h"

namespace eet::profile {
namespace {

const std::vector<Shape> kShapes = {
#include "profile_step_shapes.inc"
};

constexpr double kRate = 4.64e12;  // bytes per second that an H200 reads

struct Variant {
  const char* name;
  StepProfile profile;
};

// With 0x3f everywhere, the exchange has all results from the beginning.
const std::vector<Variant> kVariants = {
    {"as it is", {}},
    {"2 tiles in flight", {.tiles_in_flight = 2}},
    {"3 tiles in flight", {.tiles_in_flight = 3}},
    {"4 tiles in flight", {.tiles_in_flight = 4}},
    {"6 tiles in flight", {.tiles_in_flight = 6}},
    {"8 tiles in flight", {.tiles_in_flight = 8}},
    {"phases reported at 3/4", {.early_part = 4}},
    {"phases reported at 7/8", {.early_part = 8}},
    {"phases reported when complete", {.early_part = INT_MAX}},
    {"no waits", {.exchange_fill = 0x3f}},
    {"no waits, no staging", {.exchange_fill = 0x3f, .stages = false}},
    {"no waits, no attention", {.exchange_fill = 0x3f, .attends = false}},
    {"stream alone: none of the three", {.exchange_fill = 0x3f, .attends = false, .stages = false}},
    {"stream alone, 3 tiles in flight",
     {.tiles_in_flight = 3, .exchange_fill = 0x3f, .attends = false, .stages = false}},
    {"stream alone, 6 tiles in flight",
     {.tiles_in_flight = 6, .exchange_fill = 0x3f, .attends = false, .stages = false}},
};

// That a step reads: each weight of a product once, and the cache.
double ReadBytes(const DecodeStepSizes& sizes, int64_t context, bool attends) {
  const int64_t rows = sizes.qkv_size() + sizes.up_size();
  const int64_t layer = rows * sizes.hidden + (sizes.q_size() + sizes.intermediate) * sizes.hidden;
  const int64_t keys = attends ? sizes.batch * context : 0;
  const int64_t cache = 2 * keys * sizes.kv_heads * sizes.head_dim;
  return 2.0 * double(sizes.layers * (layer + cache) + sizes.vocab * sizes.hidden);
}

// Of one step, the median of some runs of a graph of several.
double Microseconds(cudaStream_t stream, const DecodeStepArgs<bfloat16>& step) {
  constexpr int kSteps = 8, kRuns = 9;
  DecodeStep(stream, step);  // loads the kernel, which may not be done while capturing
  Check();
  Check(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t steps;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kSteps; ++i) DecodeStep(stream, step);
  Check(cudaStreamEndCapture(stream, &graph));
  Check();
  Check(cudaGraphInstantiate(&steps, graph, 0));
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<double> times;
  for (int run = 0; run < kRuns; ++run) {
    float milliseconds;
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(steps, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaEventSynchronize(end));
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (run > 0) times.push_back(milliseconds * 1000 / kSteps);
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  Check(cudaGraphExecDestroy(steps));
  Check(cudaGraphDestroy(graph));
  return Median(times);
}

// A step that was given up says nothing.
void CheckStatus(const DecodeStepArgs<bfloat16>& step) {
  const int status = Download(step.status, 1)[0];
  if (status == 0) return;
  std::fprintf(stderr, "profile_step: a wait expired, status %d\n", status);
  std::exit(1);
}

void PrintVariants(cudaStream_t stream, const DecodeStepArgs<bfloat16>& step, int64_t context) {
  double as_it_is = 0;
  std::printf("%-32s%10s%10s%10s%18s\n", "", "us/step", "change", "TB/s", "% of 4.64 TB/s");
  for (const Variant& variant : kVariants) {
    CurrentStepProfile() = variant.profile;
    const double us = Microseconds(stream, step);
    const double bytes = ReadBytes(step.sizes, context, variant.profile.attends);
    if (as_it_is == 0) as_it_is = us;
    std::printf("%-32s%10.1f%+10.1f%10.3f%18.1f\n", variant.name, us, us - as_it_is,
                bytes / us / 1e6, 100 * bytes / us * 1e6 / kRate);
    std::fflush(stdout);
    CheckStatus(step);
  }
}

void PrintPhases(cudaStream_t stream, const DecodeStepArgs<bfloat16>& step) {
  const int64_t count = StepProfile::MomentsOf(step.sizes);
  int64_t* moments = Upload(std::vector<int64_t>(count));
  CurrentStepProfile() = {.moments = moments};
  std::printf("\ntraced %.1f us/step\n", Microseconds(stream, step));
  CheckStatus(step);
  PrintTable(Moments(Download(moments, count), int(step.sizes.layers)));
}

// A number of the command line, at most `most`.
int64_t Number(const char* name, const char* text, int64_t most) {
  const int64_t number = std::atoll(text);
  if (number >= 1 && number <= most) return number;
  std::fprintf(stderr, "profile_step: %s must be from 1 to %lld, got %s\n", name,
               static_cast<long long>(most), text);
  std::exit(1);
}

const Shape& Find(const std::string& name) {
  std::string names;
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return shape;
    names += " " + shape.name;
  }
  std::fprintf(stderr, "profile_step: built for%s, got %s\n", names.c_str(), name.c_str());
  std::exit(1);
}

}  // namespace
}  // namespace eet::profile

int main(int argc, char** argv) {
  using namespace eet::profile;
  if (argc != 4) {
    std::fprintf(stderr, "usage: profile_step MODEL BATCH CONTEXT\n");
    return 1;
  }
  const Shape& shape = Find(argv[1]);
  const int64_t batch = Number("BATCH", argv[2], eet::kStepTokens);
  const int64_t context = Number("CONTEXT", argv[3], 1 << 20);
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream));
  const eet::DecodeStepArgs<eet::bfloat16> step = MakeStep(shape, batch, context);
  Check(cudaDeviceSynchronize());
  std::printf("%s, batch %s, context %s, bfloat16\n", argv[1], argv[2], argv[3]);
  PrintVariants(stream, step, context);
  PrintPhases(stream, step);
}
