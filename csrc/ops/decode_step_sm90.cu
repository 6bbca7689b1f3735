// The decode step on Hopper, seen from the host: how many blocks, how their shared memory is
// divided, and the tensor maps. The kernel is in decode_step_kernel.cuh.
#include <algorithm>
#include <cmath>
#include <string>

#include "core/launch_problem.h"
#include "core/round.h"
#include "ops/decode_step_launch.cuh"

namespace eet {

namespace {

struct Gpu {
  int multiprocessors = 0, shared_bytes = 0;
  bool fits = false;  // sm_90 with cooperative launches
  int tiles_in_flight = 0;
  int kilohertz = 2'000'000;  // at most, where the driver does not say
};

// Tiles that each block has under way at a time. Fewer than memory needs leave it idle; more make
// every round trip through L2 longer: on an H200 (4.9 TB/s) four are best, on an H100
// (3.35 TB/s) two.
int TilesInFlight(int device) {
  int kilohertz = 0, bits = 0;
  cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, device);
  cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device);
  const double bytes_per_second = 2.0 * kilohertz * 1e3 * bits / 8;  // two transfers per clock
  return bytes_per_second < 4e12 ? 2 : 4;
}

Gpu FindGpu() {
  int device = 0, major = 0, minor = 0, cooperative = 0;
  Gpu gpu;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  gpu.fits = major == 9 && minor == 0 && cooperative;
  gpu.tiles_in_flight = TilesInFlight(device);
  int kilohertz = 0;
  cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device);
  if (kilohertz > 0) gpu.kilohertz = kilohertz;
  return gpu;
}

// So many ticks that a wait which ends after them has lasted so long. None for no time; at most
// half of what fits.
uint32_t TicksOf(int64_t nanoseconds, int kilohertz) {
  if (nanoseconds <= 0) return 0;
  const double ticks = 1e-6 * double(nanoseconds) * kilohertz / (1 << kTickBits);
  return uint32_t(std::min(std::ceil(ticks) + 1, double(1u << 31)));
}

// The number of blocks whose largest shares, added over the products of a layer, are smallest.
int Grid(const DecodeStepSizes& sizes, int multiprocessors) {
  const auto cost = [&](int64_t blocks) {
    const auto share = [&](int64_t out, int64_t in) {
      return CeilDiv(CeilDiv(out, 8), blocks) * in;
    };
    return sizes.layers *
               (share(sizes.qkv_size(), sizes.hidden) + share(sizes.hidden, sizes.q_size()) +
                share(sizes.up_size(), sizes.hidden) + share(sizes.hidden, sizes.intermediate)) +
           share(sizes.vocab, sizes.hidden);
  };
  int best = multiprocessors / 4 * 4;  // they look at each other's sums in fours
  for (int blocks = best; blocks >= multiprocessors * 2 / 3; blocks -= 4) {
    // Fewer blocks disturb each other less: they win from 1% on more bytes.
    if (cost(blocks) * 100 <= cost(best) * 101) best = blocks;
  }
  return best;
}

// The room of a layer's norms in shared memory. Wider ones would take that of the ring or the
// input.
constexpr int64_t kMostNormBytes = 48 << 10;

// Divides the shared memory, with so many bytes at most for the input: the ring gets what the rest
// leaves.
StepMemory Divide(const DecodeStepSizes& sizes, int norm_rows, int grid, int shared_bytes,
                  int input_bytes) {
  const int batch = int(sizes.batch);
  const int64_t longest = std::max({sizes.hidden, sizes.q_size(), sizes.intermediate});
  const int chunks = int(CeilDiv(longest, kTileChunks * kChunkColumns)) * kTileChunks;
  const int chunk_bytes = batch * kChunkColumns * 2;
  StepMemory memory = {};
  memory.slab_chunks =
      std::min(chunks, std::max(1, input_bytes / (chunk_bytes * kTileChunks)) * kTileChunks);
  int used = 0;
  const auto take = [&](int64_t bytes) {
    const int at = used;
    used += int(RoundUp(bytes, 128));
    return at;
  };
  memory.input = take(int64_t{memory.slab_chunks} * chunk_bytes);
  const int64_t norm_bytes = 2 * norm_rows * sizes.hidden * 2;
  memory.keeps_norms = norm_bytes <= kMostNormBytes;
  memory.norms = take(memory.keeps_norms ? norm_bytes : 0);
  memory.unit_group = std::max(1, std::min(kMaxUnitGroup, kFinisherTokens / batch));
  memory.sum_slots = std::max(4, 2 * memory.unit_group);
  memory.sums = take(int64_t{memory.sum_slots} * batch * kSumsLine * 4);
  memory.residual = take(CeilDiv(CeilDiv(sizes.hidden, kTileRows), grid) * kTileRows * batch * 4);
  memory.rotary = take(sizes.batch * sizes.rotary_dim * 4);
  memory.windows = take(sizes.layers * 4);
  memory.words = take(sizeof(StepWords));
  memory.stages = std::min(kMaxStages, (shared_bytes - used) / kTileBytes);
  const int ring = memory.stages * kTileBytes;
  for (int* offset : {&memory.input, &memory.norms, &memory.sums, &memory.residual, &memory.rotary,
                      &memory.windows, &memory.words}) {
    *offset += ring;
  }
  memory.bytes = ring + used;
  return memory;
}

// A large part of the input at once, all of a norm's if may be, unless that leaves a short ring.
StepMemory Divide(const DecodeStepSizes& sizes, int norm_rows, int grid, int shared_bytes) {
  constexpr int kInputBytes = 64 << 10, kLeastInput = 4 << 10, kEnoughStages = 6;
  const int normed_bytes = int(sizes.batch * sizes.hidden * 2);
  StepMemory memory =
      Divide(sizes, norm_rows, grid, shared_bytes, std::max(normed_bytes, kInputBytes));
  for (int bytes = kInputBytes; memory.stages < kEnoughStages && bytes >= kLeastInput; bytes /= 2) {
    memory = Divide(sizes, norm_rows, grid, shared_bytes, bytes);
  }
  return memory;
}

template <typename T>
bool MakeMaps(StepParams<T>& params) {
  const DecodeStepArgs<T>& args = params.args;
  const DecodeStepSizes& sizes = args.sizes;
  const auto weight = [](CUtensorMap* map, const T* kernel, int64_t rows, int64_t cols) {
    return MakeTileMap(map, kernel, rows, cols, kTileRows, kTileChunks);
  };
  const int64_t keys = sizes.layers * sizes.pages * sizes.kv_heads * sizes.page_size;
  const int tile_keys = int(StepTileKeys(sizes.head_dim));
  const int head_chunks = int(sizes.head_dim / ChunkColumns(sizes.head_dim));
  return weight(&params.qkv, args.qkv_kernel, sizes.layers * sizes.qkv_size(), sizes.hidden) &&
         weight(&params.o, args.o_kernel, sizes.layers * sizes.hidden, sizes.q_size()) &&
         weight(&params.up, args.up_kernel, sizes.layers * sizes.up_size(), sizes.hidden) &&
         weight(&params.down, args.down_kernel, sizes.layers * sizes.hidden, sizes.intermediate) &&
         weight(&params.head, args.head, sizes.vocab, sizes.hidden) &&
         MakeTileMap(&params.k, args.k, keys, sizes.head_dim, tile_keys, head_chunks) &&
         MakeTileMap(&params.v, args.v, keys, sizes.head_dim, tile_keys, head_chunks);
}

}  // namespace

template <typename T>
void DecodeStep(Stream stream, const DecodeStepArgs<T>& args) {
  static const Gpu gpu = FindGpu();
  const int norm_rows = args.final_norm.bias ? 2 : 1;
  if (!gpu.fits || !DecodeStepFits<T>(args.sizes)) {
    LaunchProblem() = "decode_step runs on GPUs of compute capability 9.0, for sizes that fit it";
    return;
  }
  const int grid =
      Grid(args.sizes, std::min(gpu.multiprocessors, int(DecodeStepExchange::kMaxBlocks)));
  StepParams<T> params{.args = args,
                       .exchange = DecodeStepExchange(args.sizes),
                       .memory = Divide(args.sizes, norm_rows, grid, gpu.shared_bytes),
                       .tiles_in_flight = gpu.tiles_in_flight,
                       .wait_limit = TicksOf(args.wait_limit, gpu.kilohertz)};
  if (params.profile.tiles_in_flight > 0) params.tiles_in_flight = params.profile.tiles_in_flight;
  if (!MakeMaps(params)) return;
  cudaMemsetAsync(args.exchange, params.profile.exchange_fill, params.exchange.bytes(), stream);
  switch (args.sizes.head_dim) {
    case 64:
      return LaunchDecodeStep<T, 64>(stream, params, grid);
    case 80:
      return LaunchDecodeStep<T, 80>(stream, params, grid);
    case 96:
      return LaunchDecodeStep<T, 96>(stream, params, grid);
    case 128:
      return LaunchDecodeStep<T, 128>(stream, params, grid);
    case 160:
      return LaunchDecodeStep<T, 160>(stream, params, grid);
    case 192:
      return LaunchDecodeStep<T, 192>(stream, params, grid);
    case 256:
      return LaunchDecodeStep<T, 256>(stream, params, grid);
  }
}

template void DecodeStep(Stream, const DecodeStepArgs<bfloat16>&);
template void DecodeStep(Stream, const DecodeStepArgs<float16>&);

}  // namespace eet
