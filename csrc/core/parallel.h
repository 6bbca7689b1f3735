// Parallel loops on the host.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "core/round.h"
#include "core/stream.h"

namespace eet {

// Calls body(block) for every block in [0, blocks), on this thread and the pool's. XLA runs
// handlers on the same pool, so waiting for a task that has not started can deadlock: the caller
// takes blocks like everybody else and waits only for blocks that somebody has begun. Late tasks
// find none left.
template <typename Body>
void ParallelFor(const Stream& stream, int64_t blocks, const Body& body) {
  const int64_t helpers = std::min<int64_t>(stream.num_threads, blocks) - 1;
  if (helpers <= 0) {
    for (int64_t block = 0; block < blocks; ++block) body(block);
    return;
  }
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, blocks, &body] {
    for (int64_t block; (block = progress->next.fetch_add(1)) < blocks;) {
      body(block);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 0; i < helpers; ++i) stream.schedule(stream.pool, work);
  work();
  while (progress->done.load(std::memory_order_acquire) < blocks) {
  }
}

// Calls body(begin, end) over [0, size) in ranges of at least `grain`, a few per thread.
template <typename Body>
void ParallelRanges(const Stream& stream, int64_t size, int64_t grain, const Body& body) {
  const int64_t most = std::max<int64_t>(1, int64_t{4} * stream.num_threads);
  const int64_t step = std::max({int64_t{1}, grain, CeilDiv(size, most)});
  ParallelFor(stream, CeilDiv(size, step),
              [&](int64_t block) { body(block * step, std::min(size, (block + 1) * step)); });
}

}  // namespace eet
