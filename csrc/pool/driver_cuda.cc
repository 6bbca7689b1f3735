// Loads libcuda.so.1 and looks up its functions.
#include "pool/driver_cuda.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "pool/slab_adapter.h"

namespace eet {
namespace {

template <typename Function>
void Find(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (!function) throw std::runtime_error(std::string("libcuda.so.1 has no ") + symbol);
}

CudaDriver Load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("there is no CUDA driver: ") + dlerror());
  CudaDriver driver;
  Find(library, "cuInit", driver.init);
  Find(library, "cuGetErrorName", driver.error_name);
  Find(library, "cuDeviceGet", driver.device_get);
  Find(library, "cuDeviceGetAttribute", driver.device_attribute);
  Find(library, "cuDeviceTotalMem_v2", driver.device_total_memory);
  Find(library, "cuDevicePrimaryCtxRetain", driver.primary_context_retain);
  Find(library, "cuDevicePrimaryCtxRelease_v2", driver.primary_context_release);
  Find(library, "cuCtxPushCurrent_v2", driver.context_push);
  Find(library, "cuCtxPopCurrent_v2", driver.context_pop);
  Find(library, "cuCtxSynchronize", driver.synchronize);
  Find(library, "cuMemGetInfo_v2", driver.memory_info);
  Find(library, "cuMemAlloc_v2", driver.allocate);
  Find(library, "cuMemFree_v2", driver.free);
  Find(library, "cuMemAddressReserve", driver.address_reserve);
  Find(library, "cuMemAddressFree", driver.address_free);
  Find(library, "cuMemGetAllocationGranularity", driver.granularity);
  Find(library, "cuMemCreate", driver.create);
  Find(library, "cuMemRelease", driver.release);
  Find(library, "cuMemMap", driver.map);
  Find(library, "cuMemUnmap", driver.unmap);
  Find(library, "cuMemSetAccess", driver.set_access);
  driver.Check(driver.init(0), "start the CUDA driver");
  return driver;
}

}  // namespace

const CudaDriver& CudaDriver::Get() {
  static const CudaDriver driver = Load();
  return driver;
}

void CudaDriver::Check(CUresult result, const char* what) const {
  if (result == CUDA_SUCCESS) return;
  const char* name = "an unknown error";
  error_name(result, &name);
  std::string text = std::string("cannot ") + what + ": " + name;
  if (result != CUDA_ERROR_OUT_OF_MEMORY) throw std::runtime_error(text);
  size_t free_bytes, total_bytes;
  if (memory_info(&free_bytes, &total_bytes) == CUDA_SUCCESS) {
    text += ", the device has " + std::to_string(free_bytes) + " of " +
            std::to_string(total_bytes) + " bytes free";
  }
  throw SlabOutOfMemory(text);
}

CudaContext::CudaContext(int ordinal) {
  const CudaDriver& driver = CudaDriver::Get();
  driver.Check(driver.device_get(&device_, ordinal), "find the device");
  driver.Check(driver.primary_context_retain(&context_, device_), "open the device");
}

CudaContext::~CudaContext() { CudaDriver::Get().primary_context_release(device_); }

CurrentContext::CurrentContext(const CudaContext& context) {
  const CudaDriver& driver = CudaDriver::Get();
  driver.Check(driver.context_push(context.context()), "enter the device's context");
}

CurrentContext::~CurrentContext() {
  CUcontext context;
  CudaDriver::Get().context_pop(&context);
}

}  // namespace eet
