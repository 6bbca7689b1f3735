// The persistent decode step: one launch streams every weight and the whole cache once.
//
// At batch 1 a step is bound by memory: 2.5 GB of weights for a 1B model, 540 us at 4.6 TB/s. A
// kernel per product loses time at each of its ends, when the last blocks still load and the next
// kernel has not begun. Here one block per multiprocessor runs all products of all layers, and
// memory never rests:
//
//   * A producer warp orders tiles of 16 KiB, in the order in which they will be multiplied, into a
//     ring in shared memory. Weights do not depend on activations, so while the blocks exchange
//     activations between two products, tiles of the next one arrive. The ring is deep (11 or 12
//     tiles, 5 us of the stream), but only four tiles are under way at a time: with two the stream
//     loses 10%, with eight 2%, and the exchange waits longer for the second cache.
//   * Every block has the same bytes of every product, not only in sum: a phase ends when its last
//     block ends. The number of blocks is chosen for that (Grid), 128 rather than 132 where it
//     divides a model's sizes.
//   * Blocks exchange activations without fences (decode_step_wait.cuh).
//   * Weights stay row-major: the copy engine's swizzle puts eight rows of a tile into eight groups
//     of banks, as ldmatrix reads them (tensor_map.h). Boxes of rows stream at 4.55 TB/s, as fast
//     as tiles that are contiguous in memory.
//   * Between two exchanges a single warp's instructions count: it issues one in about six cycles.
//     What a step needs of positions, pages and norms is brought to shared memory ahead of time.
//
// A layer's phases, each ended by an exchange:
//
//   qkv       norm of the stream, product, rotation            all blocks
//   partials  cache append, attention over splits              items dealt to teams of warps
//   attended  merge of the splits                              tasks dealt to warps
//   out       product, residual                                all blocks
//   up        norm of the stream, product, activation          all blocks
//   down      product, residual                                all blocks
//
// Within a block eight consumer warps multiply and attend, a producer orders tiles, finishers add
// the consumers' sums and finish outputs, and a lookout watches the phases' counters.
#include <algorithm>
#include <string>

#include "core/launch_problem.h"
#include "ops/decode_step_roles.cuh"

namespace eet {

template <typename T, int kDim, int kSets>
__global__ void __launch_bounds__(kStepThreads, 1)
    DecodeStepKernel(const __grid_constant__ StepParams<T> params) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) char shared[];
  StepBlock<T> block(params, shared);
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x == 0) InitWords(block);
  __syncthreads();
  // Registers are dealt to groups of four warps, 168 to each thread at the launch. The last group
  // gives most of its own to the other two: 72 + 2 * 216 = 3 * 168. With more they would wait for
  // ever.
  if (warp < kConsumers) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    Begin(block);
    Consume<T, kDim, kSets>(block);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    if (warp == kProducer) {
      Producer<T, kDim>(block).Run();
    } else {
      Begin(block);
      if (warp == kLookout) Lookout<T, kDim>(block).Run();
      if (warp >= kFinisher) Finisher<T>(block).Run();
    }
  }
#endif
}

namespace {

struct Gpu {
  int multiprocessors = 0, shared_bytes = 0;
  bool fits = false;  // sm_90 with cooperative launches
};

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
  return gpu;
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of blocks whose largest shares, added over the products of a layer, are smallest.
int Grid(const DecodeStepSizes& sizes, int multiprocessors) {
  const auto cost = [&](int64_t blocks) {
    const auto share = [&](int64_t out, int64_t in) {
      return CeilDiv(CeilDiv(out, 8), blocks) * in;
    };
    return sizes.layers *
               (share(sizes.qkv_size(), sizes.hidden) + share(sizes.hidden, sizes.q_size()) +
                share(sizes.up_size(), sizes.hidden) + share(sizes.hidden, sizes.inner)) +
           share(sizes.vocab, sizes.hidden);
  };
  int best = multiprocessors / 4 * 4;  // they look at each other's sums in fours
  for (int blocks = best; blocks >= multiprocessors * 2 / 3; blocks -= 4) {
    // Fewer blocks disturb each other less: they win from 1% on more bytes.
    if (cost(blocks) * 100 <= cost(best) * 101) best = blocks;
  }
  return best;
}

// Divides the shared memory, with so many bytes at most for the input: the ring gets what the rest
// leaves.
StepMemory Divide(const DecodeStepSizes& sizes, int norm_rows, int grid, int shared_bytes,
                  int input_bytes) {
  const int batch = int(sizes.batch);
  const int64_t longest = std::max({sizes.hidden, sizes.q_size(), sizes.inner});
  const int chunks = int(CeilDiv(longest, kTileChunks * kChunkColumns)) * kTileChunks;
  const int chunk_bytes = batch * kChunkColumns * 2;
  StepMemory memory = {};
  memory.slab_chunks =
      std::min(chunks, std::max(1, input_bytes / (chunk_bytes * kTileChunks)) * kTileChunks);
  int used = 0;
  const auto take = [&](int64_t bytes) {
    const int at = used;
    used += int(CeilDiv(bytes, 128) * 128);
    return at;
  };
  memory.input = take(int64_t{memory.slab_chunks} * chunk_bytes);
  memory.norms = take(2 * norm_rows * sizes.hidden * 2);
  memory.unit_group = std::max(1, std::min(4, kFinisherTokens / batch));
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

// A large part of the input at once, unless that leaves a short ring.
StepMemory Divide(const DecodeStepSizes& sizes, int norm_rows, int grid, int shared_bytes) {
  constexpr int kInputBytes = 64 << 10, kLeastInput = 4 << 10, kEnoughStages = 6;
  StepMemory memory;
  for (int bytes = kInputBytes; bytes >= kLeastInput; bytes /= 2) {
    memory = Divide(sizes, norm_rows, grid, shared_bytes, bytes);
    if (memory.stages >= kEnoughStages) break;
  }
  return memory;
}

template <typename T>
bool MakeMaps(StepParams<T>& params, int tile_keys) {
  const DecodeStepArgs<T>& args = params.args;
  const DecodeStepSizes& sizes = args.sizes;
  const auto weight = [](CUtensorMap* map, const T* kernel, int64_t rows, int64_t cols) {
    return MakeRowTiles(map, kernel, rows, cols, kTileRows, kTileChunks);
  };
  const int64_t keys = sizes.layers * sizes.pages * sizes.kv_heads * sizes.page_size;
  const int head_chunks = int(sizes.head_dim / kChunkColumns);
  return weight(&params.qkv, args.qkv_kernel, sizes.layers * sizes.qkv_size(), sizes.hidden) &&
         weight(&params.o, args.o_kernel, sizes.layers * sizes.hidden, sizes.q_size()) &&
         weight(&params.up, args.up_kernel, sizes.layers * sizes.up_size(), sizes.hidden) &&
         weight(&params.down, args.down_kernel, sizes.layers * sizes.hidden, sizes.inner) &&
         weight(&params.head, args.head, sizes.vocab, sizes.hidden) &&
         MakeRowTiles(&params.k, args.k, keys, sizes.head_dim, tile_keys, head_chunks) &&
         MakeRowTiles(&params.v, args.v, keys, sizes.head_dim, tile_keys, head_chunks);
}

template <typename T, int kDim, int kSets>
void Launch(Stream stream, const DecodeStepArgs<T>& args, const Gpu& gpu) {
  const int grid =
      Grid(args.sizes, std::min(gpu.multiprocessors, int(DecodeStepExchange::kMaxBlocks)));
  StepParams<T> params{
      .args = args,
      .exchange = DecodeStepExchange(args.sizes),
      .memory = Divide(args.sizes, args.final_norm.bias ? 2 : 1, grid, gpu.shared_bytes)};
  if (!MakeMaps(params, CacheTile<T, kDim>::kKeys)) return;
  const auto kernel = DecodeStepKernel<T, kDim, kSets>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, params.memory.bytes);
  cudaMemsetAsync(args.exchange, 0xff, params.exchange.bytes(), stream);
  cudaMemsetAsync(args.status, 0, sizeof(int32_t), stream);
  void* arguments[] = {&params};
  cudaLaunchCooperativeKernel(kernel, dim3(grid), dim3(kStepThreads), arguments,
                              params.memory.bytes, stream);
}

template <int kDim, typename T>
void LaunchForBatch(Stream stream, const DecodeStepArgs<T>& args, const Gpu& gpu) {
  if (args.sizes.batch <= kTokensOfSet) {
    Launch<T, kDim, 1>(stream, args, gpu);
  } else if (args.sizes.batch <= 2 * kTokensOfSet) {
    Launch<T, kDim, 2>(stream, args, gpu);
  } else {
    Launch<T, kDim, 4>(stream, args, gpu);
  }
}

}  // namespace

template <typename T>
void DecodeStep(Stream stream, const DecodeStepArgs<T>& args) {
  static const Gpu gpu = FindGpu();
  if (!gpu.fits || !DecodeStepFits<T>(args.sizes, args.final_norm.bias ? 2 : 1)) {
    LaunchProblem() = "decode_step runs on GPUs of compute capability 9.0, for sizes that fit it";
    return;
  }
  switch (args.sizes.head_dim) {
    case 64:
      return LaunchForBatch<64>(stream, args, gpu);
    case 128:
      return LaunchForBatch<128>(stream, args, gpu);
    case 256:
      return LaunchForBatch<256>(stream, args, gpu);
  }
}

template void DecodeStep(Stream, const DecodeStepArgs<bfloat16>&);
template void DecodeStep(Stream, const DecodeStepArgs<float16>&);

}  // namespace eet
