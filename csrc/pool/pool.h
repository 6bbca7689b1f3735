// A pool: one slab of device memory, divided among leases.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "pool/slab.h"
#include "pool/suballocator.h"

namespace eet {

struct PoolStats {
  uint64_t capacity = 0;            // bytes, as are the next three
  uint64_t in_use = 0;              // by leases, rounded up to the alignment
  uint64_t peak = 0;                // most that was in use at once
  uint64_t largest_free = 0;        // block
  uint64_t device_allocations = 0;  // made so far
  uint64_t leases = 0;              // alive
};

// No free block of the pool is large enough.
class PoolExhausted : public std::bad_alloc {
 public:
  explicit PoolExhausted(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// The device has not enough memory to back the pool.
class DeviceExhausted : public PoolExhausted {
 public:
  using PoolExhausted::PoolExhausted;
};

class Pool;

// The memory of one lease, which keeps its pool alive and returns to it on destruction.
class PoolBlock {
 public:
  PoolBlock(std::shared_ptr<Pool> pool, void* data, uint64_t offset, uint64_t bytes);
  ~PoolBlock();
  PoolBlock(const PoolBlock&) = delete;
  PoolBlock& operator=(const PoolBlock&) = delete;

  void* data() const { return data_; }
  uint64_t offset() const { return offset_; }
  uint64_t bytes() const { return bytes_; }
  const Pool& pool() const { return *pool_; }

 private:
  const std::shared_ptr<Pool> pool_;
  void* const data_;
  const uint64_t offset_, bytes_;
};

// Thread-safe. Nothing here knows of Python, so blocks may be destroyed on any thread.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  // `guarded` gives each block a device allocation of its own, so that memory checkers see its
  // bounds. Throws DeviceExhausted or std::runtime_error.
  Pool(const SlabFunctions& functions, int device, uint64_t capacity, uint64_t initial,
       bool guarded);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // `bytes` > 0 of memory whose content is undefined. Throws PoolExhausted, DeviceExhausted,
  // std::invalid_argument after Close, or std::runtime_error.
  std::unique_ptr<PoolBlock> Allocate(uint64_t bytes);

  // Refuses further blocks; the slab goes with the last one that is alive.
  void Close();

  PoolStats Stats() const;
  int device() const { return device_; }
  int32_t dlpack_device_type() const { return functions_.dlpack_device_type; }

 private:
  friend class PoolBlock;

  void* Back(uint64_t offset, uint64_t bytes);
  void Grow(uint64_t bytes);
  void Free(const PoolBlock& block);
  void DestroySlab();
  std::string ExhaustedText(uint64_t bytes) const;

  const SlabFunctions& functions_;
  const int device_;
  const bool guarded_;
  mutable std::mutex mutex_;  // of everything below
  void* slab_;                // nullptr once closed and given back
  Suballocator suballocator_;
  PoolStats stats_;
  bool closed_ = false;
};

}  // namespace eet
