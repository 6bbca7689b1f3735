#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <semaphore>
#include <sstream>
#include <thread>

// Of the thread that runs.
emulated::Dimensions threadIdx, blockIdx, blockDim, gridDim;

// Kernels declare it as extern __shared__ char memory[].
namespace eet {
alignas(1024) thread_local char memory[emulated::kSharedBytes + 1024];
}

namespace emulated {

namespace {

constexpr char kPoison = '\xff';  // NaN, and an index out of every range
constexpr int kGuardBytes = 1024;
constexpr int64_t kMostFruitless = 1 << 22;  // slices of threads that look and look in vain

thread_local char anchor;

std::mutex mutex;  // of the machine: one grid at a time

uint64_t SeedOfEnvironment() {
  const char* text = std::getenv("EMULATOR_SEED");
  return (text ? std::strtoull(text, nullptr, 10) : 0) * 2 + 1;
}

void RunThread() {
  Thread& thread = *current;
  thread.block->grid->kernel();
  thread.ended = true;
  thread.fiber.Suspend();
}

Dimensions At(Dimensions sizes, unsigned number) {
  return {number % sizes.x, number / sizes.x % sizes.y, number / sizes.x / sizes.y};
}

}  // namespace

Thread* current = nullptr;

uint64_t Random() {
  static uint64_t state = SeedOfEnvironment() * 0x9e3779b97f4a7c15u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state >> 11;
}

// A thread of the operating system that blocks run on, one after the other. It works only while
// somebody is in RunSlice.
class Slot {
 public:
  Slot() : host_([this] { Serve(); }) { served_.acquire(); }

  Block& Begin(Grid& grid, unsigned number) {
    const int count = int(grid.threads.count());
    while (int(threads_.size()) < count) threads_.push_back(std::make_unique<Thread>());
    block_.grid = &grid;
    block_.index = At(grid.blocks, number);
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

  // Runs threads until none can go on, or all that can have looked in vain, or it is somebody
  // else's turn. Returns whether they did more than to look.
  bool RunSlice() {
    slice_.release();
    served_.acquire();
    return fruitful_;
  }

  Block& block() { return block_; }

 private:
  Thread& BeginThread(int number) {
    Thread& thread = *threads_[number];
    thread.block = &block_;
    thread.index = At(block_.grid->threads, unsigned(number));
    thread.number = number;
    thread.ended = false;
    thread.waits_for = nullptr;
    thread.copies.Forget();
    thread.fiber.Prepare(RunThread);
    block_.threads.push_back(&thread);
    return thread;
  }

  [[noreturn]] void Serve() {
    block_.memory = eet::memory;
    block_.anchor = &anchor;
    for (;;) {
      served_.release();
      slice_.acquire();
      Slice();
    }
  }

  void Slice() {
    std::string& problem = block_.grid->problem;
    fruitful_ = false;
    size_t in_vain = 0;
    for (int left = 256 + Random() % 1024; left > 0 && problem.empty(); --left) {
      if (!block_.copies.empty() && (block_.ready.empty() || Random() % 8 == 0)) {
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
    if (block_.running == 0 && problem.empty()) CheckGuard();
  }

  // Runs one thread; returns whether it only looked for something in vain.
  bool Step() {
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
      --block_.running;
      return false;
    }
    if (thread.waits_for) return false;
    ready.push_back(&thread);
    return true;
  }

  void Copy() {
    std::swap(block_.copies[Random() % block_.copies.size()], block_.copies.back());
    const Work copy = std::move(block_.copies.back());
    block_.copies.pop_back();
    current = block_.threads[0];  // who asks for the block
    copy();
  }

  void CheckGuard() {
    const char* guard = block_.memory + block_.grid->shared_bytes;
    const auto is_poison = [](char byte) { return byte == kPoison; };
    if (!std::all_of(guard, guard + kGuardBytes, is_poison)) {
      block_.grid->problem = "a block has written behind its shared memory";
    }
  }

  Block block_;
  std::vector<std::unique_ptr<Thread>> threads_;
  bool fruitful_ = false;
  std::binary_semaphore slice_{0}, served_{0};
  std::thread host_;
};

namespace {

Slot& SlotAt(size_t index) {
  static auto* const slots = new std::vector<std::unique_ptr<Slot>>;  // their threads never end
  while (slots->size() <= index) slots->push_back(std::make_unique<Slot>());
  return *(*slots)[index];
}

void Begin(Grid& grid, unsigned first, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    grid.live.push_back(&SlotAt(grid.live.size()).Begin(grid, first + i));
  }
}

// Whose turn it is; none if nobody can go on.
Slot* Draw(const Grid& grid) {
  std::vector<size_t> able;
  for (size_t i = 0; i < grid.live.size(); ++i) {
    if (grid.live[i]->CanGoOn()) able.push_back(i);
  }
  return able.empty() ? nullptr : &SlotAt(able[Random() % able.size()]);
}

// Who waits where, in as few words as there are places.
std::string Waiting(const Grid& grid) {
  std::ostringstream text;
  for (const Block* block : grid.live) {
    const Thread* first = nullptr;
    for (const Thread* thread : block->threads) {
      const bool same = first && first->waits_for == thread->waits_for &&
                        first->where.line() == thread->where.line() && !thread->ended;
      if (same) continue;
      first = thread->ended ? nullptr : thread;
      if (!first) continue;
      text << "\n  block " << block->index.x << ", thread " << thread->number << " and on: ";
      if (!thread->waits_for) {
        text << "looks in vain";
        continue;
      }
      const std::string file = thread->where.file_name();
      text << thread->waits_for << " at " << file.substr(file.rfind('/') + 1) << ":"
           << thread->where.line();
    }
  }
  return text.str();
}

bool Ended(const Grid& grid) {
  return std::all_of(grid.live.begin(), grid.live.end(),
                     [](const Block* block) { return block->running == 0; });
}

void RunTogether(Grid& grid) {
  int64_t fruitless = 0;
  while (grid.problem.empty() && !Ended(grid)) {
    Slot* slot = Draw(grid);
    if (slot) fruitless = slot->RunSlice() ? 0 : fruitless + 1;
    if (!slot || fruitless > kMostFruitless) {
      grid.problem = "nobody can go on:" + Waiting(grid);
    }
  }
}

}  // namespace

std::string Run(Grid& grid) {
  const std::lock_guard lock(mutex);
  const unsigned count = grid.blocks.count();
  for (unsigned first = 0; first < count && grid.problem.empty();
       first += unsigned(grid.live.size())) {
    grid.live.clear();
    grid.arrived = 0;
    Begin(grid, first, grid.cooperative ? count : unsigned(grid.cluster_blocks));
    RunTogether(grid);
  }
  return grid.problem;
}

const std::vector<Block*>& Cluster(int blocks) {
  Grid& grid = *current->block->grid;
  if (int(grid.live.size()) == blocks) return grid.live;
  if (grid.live.size() > 1 || grid.blocks.count() % blocks != 0) {
    Fail("the grid is not one of clusters of " + std::to_string(blocks) + " blocks");
  }
  Begin(grid, current->block->index.x + 1, unsigned(blocks) - 1);
  return grid.live;
}

}  // namespace emulated
