// Slabs in GPU memory: a reserved range of addresses that physical memory is mapped behind as it
// grows; on devices without virtual memory management, one allocation of the whole capacity.
#include <stdexcept>
#include <vector>

#include "pool/dlpack.h"
#include "pool/driver_cuda.h"
#include "pool/live_ranges.h"
#include "pool/slab_adapter.h"

namespace eet {
namespace {

void* Pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

class CudaSlab {
 public:
  static constexpr int32_t kDlpackDeviceType = kDLCUDA;

  static uint64_t DeviceBytes(int ordinal) {
    const CudaDriver& driver = CudaDriver::Get();
    CUdevice device;
    driver.Check(driver.device_get(&device, ordinal), "find the device");
    size_t bytes;
    driver.Check(driver.device_total_memory(&bytes, device), "read the device's memory size");
    return bytes;
  }

  CudaSlab(int ordinal, uint64_t capacity)
      : driver_(CudaDriver::Get()), context_(ordinal), capacity_(capacity) {
    int grows = 0;
    const auto attribute = CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    driver_.Check(driver_.device_attribute(&grows, attribute, context_.device()),
                  "read the device's attributes");
    grows_ = grows != 0;
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = context_.device()};
    if (grows_) Reserve();
  }

  ~CudaSlab() {
    if (!base_) return;
    const CurrentContext current(context_);
    LiveSlabs().Remove(Pointer(base_));
    // XLA frees an array when the last kernel that reads it is enqueued, not when it is done.
    driver_.synchronize();
    if (!grows_) {
      driver_.free(base_);
      return;
    }
    for (const Chunk& chunk : chunks_) driver_.unmap(chunk.address, chunk.bytes);
    driver_.address_free(base_, reserved_);
  }

  void Grow(uint64_t bytes) {
    if (bytes <= backed_) return;
    const CurrentContext current(context_);
    if (grows_) {
      Map(RoundUp(bytes, granularity_) - backed_);
    } else {
      driver_.Check(driver_.allocate(&base_, capacity_), "allocate device memory");
      LiveSlabs().Add(Pointer(base_), capacity_);
      backed_ = capacity_;
    }
    ++allocations_;
  }

  void* Base() const { return Pointer(base_); }
  uint64_t Allocations() const { return allocations_; }

  // An allocation of its own, whose bounds compute-sanitizer knows.
  void* Allocate(uint64_t bytes) {
    const CurrentContext current(context_);
    CUdeviceptr address;
    driver_.Check(driver_.allocate(&address, bytes), "allocate device memory");
    ++allocations_;
    LiveSlabs().Add(Pointer(address), bytes);
    return Pointer(address);
  }

  void Deallocate(void* pointer, uint64_t) {
    const CurrentContext current(context_);
    LiveSlabs().Remove(pointer);
    driver_.free(reinterpret_cast<CUdeviceptr>(pointer));
  }

 private:
  struct Chunk {
    CUdeviceptr address;
    uint64_t bytes;
  };

  void Reserve() {
    const CurrentContext current(context_);
    driver_.Check(
        driver_.granularity(&granularity_, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
        "read the allocation granularity");
    reserved_ = RoundUp(capacity_, granularity_);
    driver_.Check(driver_.address_reserve(&base_, reserved_, 0, 0, 0), "reserve addresses");
    LiveSlabs().Add(Pointer(base_), reserved_);
  }

  // Puts `bytes` more physical memory behind the backed part.
  void Map(uint64_t bytes) {
    const CUdeviceptr address = base_ + backed_;
    CUmemGenericAllocationHandle memory;
    driver_.Check(driver_.create(&memory, bytes, &properties_, 0), "allocate device memory");
    const CUresult mapped = driver_.map(address, bytes, 0, memory, 0);
    // The mapping keeps the memory from here on.
    driver_.release(memory);
    driver_.Check(mapped, "map device memory");

    const CUmemAccessDesc access = {.location = properties_.location,
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const CUresult accessible = driver_.set_access(address, bytes, &access, 1);
    if (accessible != CUDA_SUCCESS) driver_.unmap(address, bytes);
    driver_.Check(accessible, "make device memory accessible");
    chunks_.push_back({address, bytes});
    backed_ += bytes;
  }

  const CudaDriver& driver_;
  const CudaContext context_;
  const uint64_t capacity_;
  bool grows_ = false;
  CUmemAllocationProp properties_ = {};
  size_t granularity_ = 0;
  uint64_t reserved_ = 0;
  CUdeviceptr base_ = 0;
  uint64_t backed_ = 0;
  uint64_t allocations_ = 0;
  std::vector<Chunk> chunks_;
};

}  // namespace

bool SlabContains(const void* pointer) { return LiveSlabs().Contains(pointer); }

}  // namespace eet

constinit const eet::SlabFunctions eet_slab_functions = eet::MakeSlabFunctions<eet::CudaSlab>();
