// Device memory behind C symbols: what the Python module knows of a kernel library's slabs.
#pragma once

#include <cstdint>

namespace eet {

// Why a slab function failed.
struct SlabError {
  bool out_of_memory;
  char text[512];
};

// A slab is one range of addresses on a device, backed with memory from its base upwards, so that
// growing it moves nothing. Functions that take an error return 0, nullptr or false when they fail.
struct SlabFunctions {
  int32_t dlpack_device_type;
  uint64_t (*device_bytes)(int device, SlabError* error);  // all memory of the device
  void* (*create)(int device, uint64_t capacity, SlabError* error);
  bool (*grow)(void* slab, uint64_t bytes, SlabError* error);       // backs [base, base + bytes)
  void* (*base)(const void* slab);                                  // from the first grow on
  uint64_t (*allocations)(const void* slab);                        // made from the device so far
  void* (*allocate)(void* slab, uint64_t bytes, SlabError* error);  // outside of the range
  void (*deallocate)(void* slab, void* pointer, uint64_t bytes);
  void (*destroy)(void* slab);
};

// Whether `pointer` lies in memory of a live slab of this kernel library. Handlers of ops that
// update state ask, because XLA copies state that was not donated without saying so.
bool SlabContains(const void* pointer);

}  // namespace eet

// The slab functions of a kernel library.
extern "C" __attribute__((visibility("default"))) const eet::SlabFunctions eet_slab_functions;
