// An emulated GPU: runs the CUDA kernels' own source, compiled by the host's compiler, on the CPU.
//
// Each CUDA thread is a fiber. Where threads meet (a barrier, a shuffle, a product of a warp) the
// last one to arrive does the work and makes the others ready. Which ready thread goes on is drawn
// at random, from the seed in EMULATOR_SEED: other seeds are other orders. What the GPU does
// asynchronously (copies, warpgroup products) is done at a random time between its start and the
// wait for it, so that a missing wait shows.
//
// A block's shared memory is what thread_local variables are to a thread of the operating system:
// so each block that is under way has such a thread (a slot), and runs all its fibers there, one
// slot at a time. Blocks run one after the other; those of a cluster, or of a cooperative grid,
// together.
//
// What is wrong (nobody can go on; a copy outside of shared memory; lanes that do not agree) ends
// the kernel, and the message is what cudaGetErrorString says of cudaGetLastError.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulated {

constexpr int kWarpSize = 32, kMostThreads = 1024, kNamedBarriers = 16;
constexpr int kSharedBytes = 227 << 10;  // of a block, at most
constexpr int kGuardBytes = 1024;        // behind them: nobody writes there
constexpr int kMultiprocessors = 4;

using Where = std::source_location;
using Work = std::function<void()>;

struct Dimensions {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

uint64_t Random();
inline bool Coin() { return Random() & 1; }

// Work that may be done as early as it is started and as late as it is waited for, in order.
class Deferred {
 public:
  void Start(Work work);
  void Commit();
  void Await(size_t pending);  // groups
  void Forget();

 private:
  std::deque<std::vector<Work>> groups_;
  std::vector<Work> open_;
};

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  Dimensions index;
  int number = 0;
  bool ended = false;
  const char* waits_for = nullptr;  // nullptr: it is ready
  const void* waits_at = nullptr;
  Where where;
  Deferred copies;
  int cluster_phase = 0;

  int lane() const { return number % kWarpSize; }
};

// Lanes that have arrived at an operation of their warp.
struct Warp {
  const char* operation;
  uint32_t mask = 0, arrived = 0;
  std::array<void*, kWarpSize> lanes;
  Deferred products;
};

struct NamedBarrier {
  int arrived = 0, expected = 0;
};

struct Grid;

struct Block {
  Grid* grid;
  Dimensions index;
  char* memory;  // dynamic shared memory
  char* anchor;  // a thread_local variable: others are as far from it in every block
  std::vector<Thread*> threads, ready;
  std::array<Warp, kMostThreads / kWarpSize> warps;
  std::array<NamedBarrier, kNamedBarriers> barriers;
  std::vector<Work> copies;  // TMA's and bulk copies under way
  int running = 0;           // threads that have not ended

  bool Ended() const { return running == 0; }
  bool CanGoOn() const { return !ready.empty() || !copies.empty(); }
};

struct Grid {
  Dimensions blocks, threads;
  int shared_bytes = 0, cluster_blocks = 1;
  bool cooperative = false;
  Work kernel;

  std::vector<Block*> live;    // that run together: one, a cluster, or all
  int arrived = 0, phase = 0;  // of the cluster's barrier
  std::string problem;         // ends the kernel
  int64_t time = 1;            // nanoseconds; passes only while nobody does anything
};

extern Thread* current;

// Runs a grid to its end. Returns what was wrong, or nothing.
std::string Run(Grid& grid);

// For threads, of themselves.
[[noreturn]] void Fail(const std::string& problem);
void Yield();
void WaitFor(const char* what, const void* at, Where where);
void Wake(Thread& thread);
void WakeAll(Block& block, const void* waiting_at);

void ArriveAtBarrier(int barrier, int threads);
void WaitAtBarrier(int barrier, int threads, Where where);

// The blocks of this one's cluster, which begin with the first call.
const std::vector<Block*>& Cluster(int blocks);
void ArriveAtCluster();
void WaitForCluster(Where where);

inline void Check(bool condition, const char* problem) {
  if (!condition) Fail(problem);
}

// The block in whose dynamic shared memory `pointer` lies.
Block& OwnerOf(const void* pointer);

// Shared memory as the hardware addresses it, from 0 on; `bytes` of it must be there.
uint32_t AddressOf(const void* pointer);
char* At(const Block& block, uint32_t address, int64_t bytes);

// Where the byte that belongs at `address` lies, in rows of `span` bytes whose 16-byte pieces are
// permuted.
inline uint32_t Swizzled(uint32_t address, uint32_t span) {
  return address ^ (address >> 7 & (span / 16 - 1)) << 4;
}

// Calls finish(lanes), pointers to what each lane of `mask` has brought, when all are there.
template <typename Lane, typename F>
void Meet(const char* operation, uint32_t mask, Lane& mine, Where where, const F& finish) {
  Block& block = *current->block;
  const int lane = current->lane(), first = current->number - lane;
  Warp& warp = block.warps[first / kWarpSize];
  const int exist = int(block.threads.size()) - first;
  if (exist < kWarpSize) mask &= (1u << exist) - 1;
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.mask = mask;
  }
  if (warp.operation != operation || warp.mask != mask || !(mask >> lane & 1)) {
    Fail(std::string("lanes of a warp are at ") + warp.operation + " and at " + operation);
  }
  warp.lanes[lane] = &mine;
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) return WaitFor(operation, &warp, where);
  std::array<Lane*, kWarpSize> lanes{};
  for (int i = 0; i < kWarpSize; ++i) {
    if (mask >> i & 1) lanes[i] = static_cast<Lane*>(warp.lanes[i]);
  }
  warp.arrived = 0;
  finish(lanes);
  for (int i = 0; i < kWarpSize; ++i) {
    if (i != lane && mask >> i & 1) Wake(*block.threads[first + i]);
  }
}

inline Warp& ThisWarp() { return current->block->warps[current->number / kWarpSize]; }

}  // namespace emulated
