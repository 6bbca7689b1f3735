// The CUDA driver, found at run time: a machine without it can still load the library.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace eet {

// The driver's functions that a slab takes, by their versioned symbols.
struct CudaDriver {
  decltype(&::cuInit) init;
  decltype(&::cuGetErrorName) error_name;
  decltype(&::cuDeviceGet) device_get;
  decltype(&::cuDeviceGetAttribute) device_attribute;
  decltype(&::cuDeviceTotalMem) device_total_memory;
  decltype(&::cuDevicePrimaryCtxRetain) primary_context_retain;
  decltype(&::cuDevicePrimaryCtxRelease) primary_context_release;
  decltype(&::cuCtxPushCurrent) context_push;
  decltype(&::cuCtxPopCurrent) context_pop;
  decltype(&::cuCtxSynchronize) synchronize;
  decltype(&::cuMemGetInfo) memory_info;
  decltype(&::cuMemAlloc) allocate;
  decltype(&::cuMemFree) free;
  decltype(&::cuMemAddressReserve) address_reserve;
  decltype(&::cuMemAddressFree) address_free;
  decltype(&::cuMemGetAllocationGranularity) granularity;
  decltype(&::cuMemCreate) create;
  decltype(&::cuMemRelease) release;
  decltype(&::cuMemMap) map;
  decltype(&::cuMemUnmap) unmap;
  decltype(&::cuMemSetAccess) set_access;

  // Throws std::runtime_error if there is no working driver.
  static const CudaDriver& Get();

  // Throws SlabOutOfMemory or std::runtime_error, naming `what` and the driver's error.
  void Check(CUresult result, const char* what) const;
};

// The primary context of a device, which XLA uses too.
class CudaContext {
 public:
  explicit CudaContext(int ordinal);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  CUdevice device() const { return device_; }
  CUcontext context() const { return context_; }

 private:
  CUdevice device_;
  CUcontext context_;
};

// Makes a context current on this thread for a scope. Deleters run on XLA's threads, and XLA relies
// on finding its context there again.
class CurrentContext {
 public:
  explicit CurrentContext(const CudaContext& context);
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
};

}  // namespace eet
