// Best fit over two orders of the free blocks: by offset for coalescing, by size for fitting.
#include "pool/suballocator.h"

#include <iterator>

namespace eet {

Suballocator::Suballocator(uint64_t capacity) { Insert(0, Aligned(capacity)); }

std::optional<uint64_t> Suballocator::Allocate(uint64_t bytes) {
  bytes = Aligned(bytes);
  const auto fit = blocks_by_size_.lower_bound({bytes, 0});
  if (fit == blocks_by_size_.end()) return std::nullopt;
  const auto [block_bytes, offset] = *fit;
  Erase(offset, block_bytes);
  if (block_bytes > bytes) Insert(offset + bytes, block_bytes - bytes);
  return offset;
}

void Suballocator::Free(uint64_t offset, uint64_t bytes) {
  bytes = Aligned(bytes);
  const auto next = bytes_by_offset_.find(offset + bytes);
  if (next != bytes_by_offset_.end()) {
    const uint64_t next_bytes = next->second;
    Erase(offset + bytes, next_bytes);
    bytes += next_bytes;
  }
  const auto above = bytes_by_offset_.lower_bound(offset);
  if (above != bytes_by_offset_.begin()) {
    const auto [previous, previous_bytes] = *std::prev(above);
    if (previous + previous_bytes == offset) {
      Erase(previous, previous_bytes);
      offset = previous;
      bytes += previous_bytes;
    }
  }
  Insert(offset, bytes);
}

uint64_t Suballocator::LargestFree() const {
  return blocks_by_size_.empty() ? 0 : blocks_by_size_.rbegin()->first;
}

void Suballocator::Insert(uint64_t offset, uint64_t bytes) {
  bytes_by_offset_.emplace(offset, bytes);
  blocks_by_size_.emplace(bytes, offset);
}

void Suballocator::Erase(uint64_t offset, uint64_t bytes) {
  bytes_by_offset_.erase(offset);
  blocks_by_size_.erase({bytes, offset});
}

}  // namespace eet
