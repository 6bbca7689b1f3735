// Makes a slab class, which throws, into the table of C functions, which describe errors.
#pragma once

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "pool/slab.h"

namespace eet {

// The device has no more memory.
class SlabOutOfMemory : public std::bad_alloc {
 public:
  explicit SlabOutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

inline uint64_t RoundUp(uint64_t bytes, uint64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

// Calls f; no exception passes the C symbols.
template <typename F>
auto DescribeErrors(SlabError* error, F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc& exception) {
    error->out_of_memory = true;
    std::snprintf(error->text, sizeof(error->text), "%s", exception.what());
  } catch (const std::exception& exception) {
    error->out_of_memory = false;
    std::snprintf(error->text, sizeof(error->text), "%s", exception.what());
  }
  return {};
}

template <typename Slab>
constexpr SlabFunctions MakeSlabFunctions() {
  return {
      .dlpack_device_type = Slab::kDlpackDeviceType,
      .device_bytes =
          [](int device, SlabError* error) {
            return DescribeErrors(error, [&] { return Slab::DeviceBytes(device); });
          },
      .create =
          [](int device, uint64_t capacity, SlabError* error) {
            return DescribeErrors(error, [&]() -> void* { return new Slab(device, capacity); });
          },
      .grow =
          [](void* slab, uint64_t bytes, SlabError* error) {
            return DescribeErrors(error, [&] {
              static_cast<Slab*>(slab)->Grow(bytes);
              return true;
            });
          },
      .base = [](const void* slab) { return static_cast<const Slab*>(slab)->Base(); },
      .allocations = [](const void* slab) { return static_cast<const Slab*>(slab)->Allocations(); },
      .allocate =
          [](void* slab, uint64_t bytes, SlabError* error) {
            return DescribeErrors(error, [&] { return static_cast<Slab*>(slab)->Allocate(bytes); });
          },
      .deallocate = [](void* slab, void* pointer,
                       uint64_t bytes) { static_cast<Slab*>(slab)->Deallocate(pointer, bytes); },
      .destroy = [](void* slab) { delete static_cast<Slab*>(slab); },
  };
}

}  // namespace eet
