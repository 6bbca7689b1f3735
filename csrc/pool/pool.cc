// Blocks from the suballocator, backed by the slab, which grows by chunks.
#include "pool/pool.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace eet {
namespace {

// Few, large mappings: each costs the driver a call and a translation entry.
constexpr uint64_t kGrowth = uint64_t{64} << 20;

[[noreturn]] void Throw(const SlabError& error) {
  if (error.out_of_memory) throw DeviceExhausted(error.text);
  throw std::runtime_error(error.text);
}

}  // namespace

PoolBlock::PoolBlock(std::shared_ptr<Pool> pool, void* data, uint64_t offset, uint64_t bytes)
    : pool_(std::move(pool)), data_(data), offset_(offset), bytes_(bytes) {}

PoolBlock::~PoolBlock() { pool_->Free(*this); }

Pool::Pool(const SlabFunctions& functions, int device, uint64_t capacity, uint64_t initial,
           bool guarded)
    : functions_(functions),
      device_(device),
      guarded_(guarded),
      suballocator_(Suballocator::Aligned(capacity)) {
  stats_.capacity = Suballocator::Aligned(capacity);
  SlabError error;
  slab_ = functions_.create(device, stats_.capacity, &error);
  if (!slab_) Throw(error);
  if (initial == 0 || guarded) return;
  try {
    Grow(initial);
  } catch (...) {
    DestroySlab();
    throw;
  }
}

Pool::~Pool() { DestroySlab(); }

std::unique_ptr<PoolBlock> Pool::Allocate(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (closed_) throw std::invalid_argument("the BufferPool is closed");
  const auto offset = suballocator_.Allocate(bytes);
  if (!offset) throw PoolExhausted(ExhaustedText(bytes));
  void* data;
  try {
    data = Back(*offset, bytes);
  } catch (...) {
    suballocator_.Free(*offset, bytes);
    throw;
  }
  stats_.in_use += Suballocator::Aligned(bytes);
  stats_.peak = std::max(stats_.peak, stats_.in_use);
  ++stats_.leases;
  return std::make_unique<PoolBlock>(shared_from_this(), data, *offset, bytes);
}

void Pool::Close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  if (stats_.leases == 0) DestroySlab();
}

PoolStats Pool::Stats() const {
  const std::lock_guard lock(mutex_);
  PoolStats stats = stats_;
  stats.largest_free = suballocator_.LargestFree();
  if (slab_) stats.device_allocations = functions_.allocations(slab_);
  return stats;
}

// Memory for a block at `offset`.
void* Pool::Back(uint64_t offset, uint64_t bytes) {
  if (!guarded_) {
    Grow(offset + bytes);
    return static_cast<char*>(functions_.base(slab_)) + offset;
  }
  SlabError error;
  void* data = functions_.allocate(slab_, bytes, &error);
  if (!data) Throw(error);
  return data;
}

void Pool::Grow(uint64_t bytes) {
  const uint64_t chunks = (bytes + kGrowth - 1) / kGrowth;
  SlabError error;
  if (!functions_.grow(slab_, std::min(stats_.capacity, chunks * kGrowth), &error)) Throw(error);
}

void Pool::Free(const PoolBlock& block) {
  const std::lock_guard lock(mutex_);
  if (guarded_) functions_.deallocate(slab_, block.data(), block.bytes());
  suballocator_.Free(block.offset(), block.bytes());
  stats_.in_use -= Suballocator::Aligned(block.bytes());
  --stats_.leases;
  if (closed_ && stats_.leases == 0) DestroySlab();
}

void Pool::DestroySlab() {
  if (!slab_) return;
  stats_.device_allocations = functions_.allocations(slab_);
  functions_.destroy(std::exchange(slab_, nullptr));
}

std::string Pool::ExhaustedText(uint64_t bytes) const {
  return "the BufferPool needs " + std::to_string(bytes) + " bytes, " +
         std::to_string(stats_.capacity - stats_.in_use) +
         " are free, the largest free block has " + std::to_string(suballocator_.LargestFree()) +
         ", the capacity is " + std::to_string(stats_.capacity);
}

}  // namespace eet
