#include "slot.h"

#include <algorithm>
#include <cstring>

// Of the thread that runs.
emulated::Dimensions threadIdx, blockIdx, blockDim, gridDim;

// Kernels declare it as extern __shared__ char memory[].
namespace eet {
alignas(1024) thread_local char memory[emulated::kSharedBytes + emulated::kGuardBytes];
}

namespace emulated {

Thread* current = nullptr;

namespace {

constexpr char kPoison = '\xff';  // NaN, and an index out of every range

thread_local char anchor;

void RunThread() {
  Thread& thread = *current;
  thread.block->grid->kernel();
  thread.ended = true;
  thread.fiber.Suspend();
}

Dimensions Place(Dimensions sizes, unsigned number) {
  return {number % sizes.x, number / sizes.x % sizes.y, number / sizes.x / sizes.y};
}

}  // namespace

Slot::Slot() : host_([this] { Serve(); }) { served_.acquire(); }

Block& Slot::Begin(Grid& grid, unsigned number) {
  const int count = int(grid.threads.count());
  while (int(threads_.size()) < count) threads_.push_back(std::make_unique<Thread>());
  block_.grid = &grid;
  block_.index = Place(grid.blocks, number);
  block_.threads.clear();
  block_.ready.clear();
  block_.copies.clear();
  block_.barriers = {};
  block_.running = count;
  for (Warp& warp : block_.warps) {
    warp.arrived = 0;
    warp.products.Forget();
  }
  for (int i = 0; i < count; ++i) block_.ready.push_back(&BeginThread(i));
  std::memset(block_.memory, kPoison, size_t(grid.shared_bytes) + kGuardBytes);
  return block_;
}

bool Slot::RunSlice() {
  slice_.release();
  served_.acquire();
  return fruitful_;
}

Thread& Slot::BeginThread(int number) {
  Thread& thread = *threads_[number];
  thread.block = &block_;
  thread.index = Place(block_.grid->threads, unsigned(number));
  thread.number = number;
  thread.ended = false;
  thread.waits_for = nullptr;
  thread.copies.Forget();
  thread.fiber.Prepare(RunThread);
  block_.threads.push_back(&thread);
  return thread;
}

void Slot::Serve() {
  block_.memory = eet::memory;
  block_.anchor = &anchor;
  for (;;) {
    served_.release();
    slice_.acquire();
    Slice();
  }
}

void Slot::Slice() {
  const std::string& problem = block_.grid->problem;
  const uint64_t copy_time = 4 << Random() % 4 * 4;  // steps: from at once to when nobody can go on
  fruitful_ = false;
  size_t in_vain = 0;
  for (int left = 256 + Random() % 1024; left > 0 && problem.empty(); --left) {
    if (!block_.copies.empty() && (block_.ready.empty() || Random() % copy_time == 0)) {
      Copy();
      fruitful_ = true;
    }
    if (block_.ready.empty()) {
      if (block_.copies.empty()) break;
      continue;
    }
    const bool looked = Step();
    in_vain = looked ? in_vain + 1 : 0;
    fruitful_ |= !looked;
    if (in_vain > 2 * block_.ready.size()) break;
  }
}

// Runs one thread; returns whether it only looked for something in vain.
bool Slot::Step() {
  std::vector<Thread*>& ready = block_.ready;
  std::swap(ready[Random() % ready.size()], ready.back());
  Thread& thread = *ready.back();
  ready.pop_back();
  current = &thread;
  threadIdx = thread.index;
  blockIdx = block_.index;
  blockDim = block_.grid->threads;
  gridDim = block_.grid->blocks;
  thread.fiber.Resume();
  if (thread.ended) {
    if (--block_.running == 0) End();
    return false;
  }
  if (thread.waits_for) return false;
  ready.push_back(&thread);
  return true;
}

void Slot::Copy() {
  std::swap(block_.copies[Random() % block_.copies.size()], block_.copies.back());
  const Work copy = std::move(block_.copies.back());
  block_.copies.pop_back();
  current = block_.threads[0];  // who asks for the block
  copy();
}

void Slot::End() {
  const char* guard = block_.memory + block_.grid->shared_bytes;
  const auto is_poison = [](char byte) { return byte == kPoison; };
  std::string& problem = block_.grid->problem;
  if (!std::all_of(guard, guard + kGuardBytes, is_poison)) {
    problem = "a block has written behind its shared memory";
  }
  if (!block_.copies.empty()) problem = "a block ends with copies to it under way";
}

}  // namespace emulated
