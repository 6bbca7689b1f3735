// What threads of the machine do: wait, wake others, arrive at barriers.
#include "machine.h"

namespace emulated {

void Fail(const std::string& problem) {
  Block& block = *current->block;
  block.grid->problem = "block " + std::to_string(block.index.x) + ", thread " +
                        std::to_string(current->number) + ": " + problem;
  current->fiber.Suspend();
  __builtin_unreachable();  // nobody resumes a thread of a grid with a problem
}

void Yield() { current->fiber.Suspend(); }

void WaitFor(const char* what, const void* at, Where where) {
  current->waits_for = what;
  current->waits_at = at;
  current->where = where;
  current->fiber.Suspend();
}

void Wake(Thread& thread) {
  thread.waits_for = nullptr;
  thread.block->ready.push_back(&thread);
}

void WakeAll(Block& block, const void* waiting_at) {
  for (Thread* thread : block.threads) {
    if (!thread->ended && thread->waits_for && thread->waits_at == waiting_at) Wake(*thread);
  }
}

namespace {

// Returns whether this thread is the last one.
bool Arrive(NamedBarrier& barrier, int threads) {
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) Fail("a barrier of the block is given two numbers of threads");
  if (++barrier.arrived < threads) return false;
  barrier.arrived = 0;
  WakeAll(*current->block, &barrier);
  return true;
}

}  // namespace

void ArriveAtBarrier(int barrier, int threads) {
  Arrive(current->block->barriers.at(barrier), threads);
}

void WaitAtBarrier(int barrier, int threads, Where where) {
  NamedBarrier& place = current->block->barriers.at(barrier);
  if (!Arrive(place, threads)) WaitFor("a barrier of the block", &place, where);
}

void ArriveAtCluster() {
  Grid& grid = *current->block->grid;
  current->cluster_phase = grid.phase;
  if (++grid.arrived < int(grid.live.size() * grid.threads.count())) return;
  grid.arrived = 0;
  ++grid.phase;
  for (Block* block : grid.live) WakeAll(*block, &grid);
}

void WaitForCluster(Where where) {
  Grid& grid = *current->block->grid;
  if (current->cluster_phase == grid.phase) WaitFor("the cluster's barrier", &grid, where);
}

Block& OwnerOf(const void* pointer) {
  const char* byte = static_cast<const char*>(pointer);
  Grid& grid = *current->block->grid;
  for (Block* block : grid.live) {
    if (byte >= block->memory && byte < block->memory + grid.shared_bytes) return *block;
  }
  Fail("this does not lie in dynamic shared memory");
}

uint32_t AddressOf(const void* pointer) {
  return uint32_t(static_cast<const char*>(pointer) - OwnerOf(pointer).memory);
}

char* At(const Block& block, uint32_t address, int64_t bytes) {
  if (int64_t{address} + bytes > block.grid->shared_bytes) {
    Fail(std::to_string(bytes) + " bytes at " + std::to_string(address) +
         " of shared memory, which has " + std::to_string(block.grid->shared_bytes));
  }
  return block.memory + address;
}

void Deferred::Start(Work work) {
  open_.push_back(std::move(work));
  if (Coin()) return;
  Await(0);
  for (const Work& early : open_) early();
  open_.clear();
}

void Deferred::Commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
}

void Deferred::Await(size_t pending) {
  while (groups_.size() > pending) {
    const std::vector<Work> oldest = std::move(groups_.front());
    groups_.pop_front();
    for (const Work& work : oldest) work();
  }
}

void Deferred::Forget() {
  groups_.clear();
  open_.clear();
}

}  // namespace emulated
