// Which blocks run, and what is wrong when none can.
#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <sstream>

#include "slot.h"

namespace emulated {

namespace {

constexpr int64_t kSliceTime = 1'000'000;    // of one in which all threads look in vain
constexpr int64_t kMostFruitless = 1 << 16;  // such slices

std::mutex mutex;  // of the machine: one grid at a time

uint64_t SeedOfEnvironment() {
  const char* text = std::getenv("EMULATOR_SEED");
  return (text ? std::strtoull(text, nullptr, 10) : 0) * 2 + 1;
}

}  // namespace

uint64_t Random() {
  static uint64_t state = SeedOfEnvironment() * 0x9e3779b97f4a7c15u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state >> 11;
}

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

// Whose turn it is; none if nobody can go on. For a while one of them is slow.
Slot* Draw(const Grid& grid) {
  static size_t slow = 0;
  if (Random() % 64 == 0) slow = Random() % grid.live.size();
  std::vector<size_t> able;
  for (size_t i = 0; i < grid.live.size(); ++i) {
    if (grid.live[i]->CanGoOn() && (i != slow || Random() % 16 == 0)) able.push_back(i);
  }
  if (!able.empty()) return &SlotAt(able[Random() % able.size()]);
  return slow < grid.live.size() && grid.live[slow]->CanGoOn() ? &SlotAt(slow) : nullptr;
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
                     [](const Block* block) { return block->Ended(); });
}

void RunTogether(Grid& grid) {
  int64_t fruitless = 0;
  while (grid.problem.empty() && !Ended(grid)) {
    Slot* slot = Draw(grid);
    if (slot) fruitless = slot->RunSlice() ? 0 : fruitless + 1;
    if (fruitless > 16 * int64_t(grid.live.size())) grid.time += kSliceTime;
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
