// Linear for few rows on Hopper, bfloat16 and float16: one unbroken stream of weights.
//
// One block per multiprocessor computes tiles of 16 outputs, one after the other. A producer warp
// copies the tiles' rows through a ring of shared memory, 512 columns a stage, and never waits for
// anything but room: weights do not depend on the kernel before, so the ring fills while that is
// still at work. Eight consumer warps multiply, 64 columns of a stage each, on tensor cores with the
// weights as their 16-row operand; at the end of a tile their sums are added in the order of the
// warps. Which warp takes which columns depends on the size of the kernel alone, and so do a
// token's bits.
#include <algorithm>

#include "core/bulk_copy.cuh"
#include "core/launch.cuh"
#include "ops/linear_decode.cuh"

namespace eet {

constexpr int kConsumers = 8;  // warps
constexpr int kBlockThreads = (kConsumers + 1) * kWarpSize;
constexpr int kStageCols = 512;
constexpr int kWarpChunks = kStageCols / kConsumers / kChunk;
// Rows are 64 bytes apart more than they are long: eight lanes then read from all banks.
constexpr int kRowBytes = kStageCols * 2 + 64;
constexpr int kStageBytes = kOuts * kRowBytes;
constexpr int kStages = 9;

template <int kTokenTiles>
struct BulkShared {
  static constexpr int kTilesAtOnce = kTokenTiles < 4 ? kTokenTiles : 4;

  alignas(128) char ring[kStages][kStageBytes];
  float partial[kConsumers][kTilesAtOnce * kTileFloats];
  CopyBarrier full[kStages], empty[kStages];
};

// The next stage of the ring, and the parity of its barriers.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The producer warp: a lane copies one row of each stage.
template <typename T, typename Y, typename Shared>
__device__ void Produce(const LinearArgs<T, Y>& args, Shared& shared) {
  const int lane = threadIdx.x % kWarpSize;
  RingPosition at;
  at.parity = 1;  // the ring starts empty
  for (int64_t out = int64_t{blockIdx.x} * kOuts; out < args.out; out += gridDim.x * kOuts) {
    // Outputs that do not exist get the last one's weights; nobody reads their sums.
    const T* row = args.kernel + min(out + lane, args.out - 1) * args.in;
    for (int64_t col = 0; col < args.in; col += kStageCols) {
      const uint32_t bytes = uint32_t(min(int64_t{kStageCols}, args.in - col)) * sizeof(T);
      if (lane == 0) {
        shared.empty[at.stage].Wait(at.parity);
        shared.full[at.stage].ArriveAndExpect(bytes * kOuts);
      }
      __syncwarp();
      if (lane < kOuts) {
        char* slot = shared.ring[at.stage] + lane * kRowBytes;
        shared.full[at.stage].Copy(slot, row + col, bytes);
      }
      at.Advance();
    }
  }
}

// A consumer warp's part of one stage: 64 columns of 16 outputs and of all tokens.
template <typename T, int kTokenTiles>
struct ConsumerStage {
  uint4 tokens[kWarpChunks][kTokenTiles];
  int col;  // the lane's first column

  // Fetches the part of x, for which nobody has to wait.
  template <typename Y>
  __device__ __forceinline__ void LoadTokens(const LinearArgs<T, Y>& args, int64_t first_token,
                                             int64_t first_col) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    col = int(first_col) + warp * kWarpChunks * kChunk + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        const int64_t token = first_token + tile * kTokens + lane / 4;
        tokens[i][tile] = LoadReused(args.x + token * args.in + col + i * kChunk,
                                     token < args.rows && col + i * kChunk < args.in);
      }
    }
  }

  __device__ __forceinline__ void Multiply(const char* stage, int64_t in,
                                           float (&sums)[kTokenTiles][4]) const {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const char* mine = stage + lane / 4 * kRowBytes + (warp * kWarpChunks * kChunk + lane % 4 * 8) * 2;
#pragma unroll
    for (int i = 0; i < kWarpChunks; ++i) {
      uint4 weights[2] = {};  // of columns that do not exist, whatever the ring holds there
      if (col + i * kChunk < in) {
        const char* chunk = mine + i * kChunk * 2;
        weights[0] = *reinterpret_cast<const uint4*>(chunk);
        weights[1] = *reinterpret_cast<const uint4*>(chunk + kOuts / 2 * kRowBytes);
      }
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        MultiplyChunk<T>(weights, tokens[i][tile], sums[tile]);
      }
    }
  }
};

// Waits for the consumer warps alone.
__device__ __forceinline__ void SyncConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers * kWarpSize) : "memory");
}

template <typename T, typename Y, int kTokenTiles>
__device__ void Consume(const LinearArgs<T, Y>& args, BulkShared<kTokenTiles>& shared) {
  constexpr int kTilesAtOnce = BulkShared<kTokenTiles>::kTilesAtOnce;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t first_token = int64_t{blockIdx.y} * kTokenTiles * kTokens;
  RingPosition at;
  for (int64_t out = int64_t{blockIdx.x} * kOuts; out < args.out; out += gridDim.x * kOuts) {
    float sums[kTokenTiles][4] = {};
    for (int64_t col = 0; col < args.in; col += kStageCols) {
      ConsumerStage<T, kTokenTiles> stage;
      stage.LoadTokens(args, first_token, col);
      shared.full[at.stage].Wait(at.parity);
      stage.Multiply(shared.ring[at.stage], args.in, sums);
      __syncwarp();
      if (lane == 0) shared.empty[at.stage].Arrive();
      at.Advance();
    }
#pragma unroll
    for (int first = 0; first < kTokenTiles; first += kTilesAtOnce) {
      SyncConsumers();  // the sums before may still be being added
#pragma unroll
      for (int tile = 0; tile < kTilesAtOnce; ++tile) {
        StoreSums(sums[first + tile], shared.partial[warp] + tile * kTileFloats);
      }
      SyncConsumers();
      FinishTiles<kConsumers, kTilesAtOnce>(args, shared.partial, first_token + first * kTokens, out);
    }
  }
}

template <typename T, typename Y, int kTokenTiles>
__global__ void __launch_bounds__(kBlockThreads, 1) LinearDecodeBulkKernel(LinearArgs<T, Y> args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<BulkShared<kTokenTiles>*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      shared.full[i].Init(1);
      shared.empty[i].Init(kConsumers);
    }
    FenceBarriers();
  }
  __syncthreads();
  LetNextKernelStart();
  if (threadIdx.x / kWarpSize == kConsumers) {
    Produce(args, shared);
  } else {
    WaitForPreviousKernel();  // it may still write x and the residual, but no weights
    Consume(args, shared);
  }
#endif
}

template <int kTokenTiles, typename T, typename Y>
static void Launch(Stream stream, const LinearArgs<T, Y>& args) {
  constexpr size_t kSharedBytes = sizeof(BulkShared<kTokenTiles>);
  auto kernel = LinearDecodeBulkKernel<T, Y, kTokenTiles>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kSharedBytes));
  const int64_t tiles = (args.out + kOuts - 1) / kOuts;
  const int64_t processors = DeviceAttribute(cudaDevAttrMultiProcessorCount);
  constexpr int64_t kBlockTokens = kTokenTiles * kTokens;
  const dim3 grid(std::min(tiles, processors), (args.rows + kBlockTokens - 1) / kBlockTokens);
  LaunchEarly(kernel, grid, kBlockThreads, kSharedBytes, stream, args);
}

template <typename T, typename Y>
void LinearDecodeBulk(Stream stream, const LinearArgs<T, Y>& args) {
  if (args.rows <= kTokens) {
    Launch<1>(stream, args);
  } else if (args.rows <= 2 * kTokens) {
    Launch<2>(stream, args);
  } else if (args.rows <= 4 * kTokens) {
    Launch<4>(stream, args);
  } else {
    Launch<8>(stream, args);
  }
}

bool StreamsByBulkCopies() { return DeviceAttribute(cudaDevAttrComputeCapabilityMajor) == 9; }

template void LinearDecodeBulk(Stream, const LinearArgs<bfloat16>&);
template void LinearDecodeBulk(Stream, const LinearArgs<float16>&);
template void LinearDecodeBulk(Stream, const LinearArgs<bfloat16, float>&);
template void LinearDecodeBulk(Stream, const LinearArgs<float16, float>&);

}  // namespace eet
