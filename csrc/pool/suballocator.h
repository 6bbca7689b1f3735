// Divides a range of offsets: best fit, 256-byte aligned, free neighbours coalesced.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace eet {

// Offsets only: it never touches the memory, and locking is the caller's.
class Suballocator {
 public:
  static constexpr uint64_t kAlignment = 256;

  static constexpr uint64_t Aligned(uint64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  explicit Suballocator(uint64_t capacity);

  // The offset of `bytes` free bytes, or nullopt when no free block is large enough.
  std::optional<uint64_t> Allocate(uint64_t bytes);

  // Takes back what Allocate returned for the same number of bytes.
  void Free(uint64_t offset, uint64_t bytes);

  uint64_t LargestFree() const;

 private:
  void Insert(uint64_t offset, uint64_t bytes);
  void Erase(uint64_t offset, uint64_t bytes);

  std::map<uint64_t, uint64_t> bytes_by_offset_;            // of free blocks
  std::set<std::pair<uint64_t, uint64_t>> blocks_by_size_;  // (bytes, offset) of the same
};

}  // namespace eet
