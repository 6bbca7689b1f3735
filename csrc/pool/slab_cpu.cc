// Slabs in host memory: a reserved range of addresses that is made accessible as it grows.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "pool/dlpack.h"
#include "pool/live_ranges.h"
#include "pool/slab_adapter.h"

namespace eet {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;
constexpr uint64_t kAlignment = 256;

uint64_t PageBytes() { return uint64_t(sysconf(_SC_PAGESIZE)); }

[[noreturn]] void ThrowErrno(const char* what, uint64_t bytes) {
  const std::string text =
      "cannot " + std::string(what) + " " + std::to_string(bytes) + " bytes: " + strerror(errno);
  if (errno == ENOMEM) throw SlabOutOfMemory(text);
  throw std::runtime_error(text);
}

// Addresses without memory behind them.
char* Reserve(uint64_t bytes) {
  void* address =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) ThrowErrno("reserve", bytes);
  return static_cast<char*>(address);
}

void MakeAccessible(char* address, uint64_t bytes) {
  if (mprotect(address, bytes, PROT_READ | PROT_WRITE) != 0) ThrowErrno("map", bytes);
}

class CpuSlab {
 public:
  static constexpr int32_t kDlpackDeviceType = kDLCPU;

  static uint64_t DeviceBytes(int) { return uint64_t(sysconf(_SC_PHYS_PAGES)) * PageBytes(); }

  CpuSlab(int, uint64_t capacity)
      : reserved_(RoundUp(capacity, kHugePage) + kHugePage), mapping_(Reserve(reserved_)) {
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    base_ = mapping_ + (RoundUp(address, kHugePage) - address);
    LiveSlabs().Add(base_, capacity);
  }

  ~CpuSlab() {
    LiveSlabs().Remove(base_);
    munmap(mapping_, reserved_);
  }

  void Grow(uint64_t bytes) {
    bytes = RoundUp(bytes, kHugePage);
    if (bytes <= backed_) return;
    MakeAccessible(base_ + backed_, bytes - backed_);
    // Only advice: kernels without huge pages refuse.
    madvise(base_ + backed_, bytes - backed_, MADV_HUGEPAGE);
    backed_ = bytes;
    ++allocations_;
  }

  void* Base() const { return base_; }
  uint64_t Allocations() const { return allocations_; }

  // Ends at an inaccessible page and starts after one, as closely as the alignment allows.
  void* Allocate(uint64_t bytes) {
    const uint64_t page = PageBytes(), inner = RoundUp(bytes, page);
    char* guard = Reserve(inner + 2 * page);
    MakeAccessible(guard + page, inner);
    ++allocations_;
    char* pointer = guard + page + (inner - RoundUp(bytes, kAlignment));
    LiveSlabs().Add(pointer, bytes);
    return pointer;
  }

  void Deallocate(void* pointer, uint64_t bytes) {
    LiveSlabs().Remove(pointer);
    const uint64_t page = PageBytes(), inner = RoundUp(bytes, page);
    char* guard = static_cast<char*>(pointer) - (inner - RoundUp(bytes, kAlignment)) - page;
    munmap(guard, inner + 2 * page);
  }

 private:
  uint64_t reserved_;
  char* mapping_;
  char* base_ = nullptr;
  uint64_t backed_ = 0;
  uint64_t allocations_ = 0;
};

}  // namespace

bool SlabContains(const void* pointer) { return LiveSlabs().Contains(pointer); }

}  // namespace eet

constinit const eet::SlabFunctions eet_slab_functions = eet::MakeSlabFunctions<eet::CpuSlab>();
