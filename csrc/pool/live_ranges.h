// The address ranges that live slabs occupy, for lookup by pointer.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace eet {

class LiveRanges {
 public:
  void Add(const void* base, uint64_t bytes) {
    const std::unique_lock lock(mutex_);
    ends_[reinterpret_cast<uintptr_t>(base)] = reinterpret_cast<uintptr_t>(base) + bytes;
  }

  void Remove(const void* base) {
    const std::unique_lock lock(mutex_);
    ends_.erase(reinterpret_cast<uintptr_t>(base));
  }

  bool Contains(const void* pointer) const {
    const std::shared_lock lock(mutex_);
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    const auto next = ends_.upper_bound(address);
    return next != ends_.begin() && address < std::prev(next)->second;
  }

 private:
  mutable std::shared_mutex mutex_;
  std::map<uintptr_t, uintptr_t> ends_;  // by first address
};

// Never destroyed: arrays may outlive static objects at the end of the process.
inline LiveRanges& LiveSlabs() {
  static auto* const ranges = new LiveRanges;
  return *ranges;
}

}  // namespace eet
