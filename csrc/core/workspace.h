// Consecutive pieces of one byte buffer, for activations that live in the pool.
#pragma once

#include <cstdint>

#include "core/round.h"

namespace eet {

// Hands out aligned pieces in the order asked for. Without memory it only measures.
class Workspace {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Workspace(void* data = nullptr) : data_(static_cast<char*>(data)) {}

  template <typename T>
  T* Take(int64_t count) {
    char* piece = data_ ? data_ + used_ : nullptr;
    used_ += RoundUp(count * int64_t{sizeof(T)}, kAlignment);
    return reinterpret_cast<T*>(piece);
  }

  int64_t used() const { return used_; }

 private:
  char* data_;
  int64_t used_ = 0;
};

}  // namespace eet
