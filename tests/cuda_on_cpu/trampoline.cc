// Runs CUDA handlers as custom calls of XLA's CPU platform, so that tools which are too slow for
// XLA's own GPU modules can look at the kernels. Every call moves its buffers to the GPU and back.
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

// It does not wait for the default stream: kernels that are launched there by mistake come too
// late.
cudaStream_t Stream() {
  static const cudaStream_t stream = [] {
    cudaStream_t created;
    Check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return created;
  }();
  return stream;
}

XLA_FFI_Error* GetStream(XLA_FFI_Stream_Get_Args* args) {
  args->stream = Stream();
  return nullptr;
}

size_t Bytes(const XLA_FFI_Buffer& buffer) {
  size_t bytes = xla::ffi::ByteWidth(xla::ffi::DataType(buffer.dtype));
  for (int64_t i = 0; i < buffer.rank; ++i) bytes *= buffer.dims[i];
  return bytes;
}

// Device memory in the place of a host buffer. It is an allocation of exactly that size, so that
// memcheck sees every access outside.
class Twin {
 public:
  explicit Twin(const XLA_FFI_Buffer& buffer) : host_(buffer.data), bytes_(Bytes(buffer)) {
    Check(cudaMalloc(&device_, bytes_), "cudaMalloc");
  }
  ~Twin() { cudaFree(device_); }
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;

  void* device() const { return device_; }
  size_t bytes() const { return bytes_; }

  void CopyIn() {
    Check(cudaMemcpyAsync(device_, host_, bytes_, cudaMemcpyHostToDevice, Stream()),
          "copying an operand to the GPU");
  }
  // NaN and -1: what the kernel does not write is seen.
  void Spoil() { Check(cudaMemsetAsync(device_, 0xff, bytes_, Stream()), "cudaMemsetAsync"); }
  void CopyOut() {
    Check(cudaMemcpyAsync(host_, device_, bytes_, cudaMemcpyDeviceToHost, Stream()),
          "copying a result from the GPU");
  }

 private:
  void* host_;
  void* device_ = nullptr;
  size_t bytes_;
};

// A call frame whose buffers lie on the GPU. One host buffer, as that of an operand updated in
// place and of its result, is one device buffer.
class DeviceFrame {
 public:
  explicit DeviceFrame(const XLA_FFI_CallFrame& host) : frame_(host), api_(*host.api) {
    api_.XLA_FFI_Stream_Get = GetStream;
    frame_.api = &api_;
    frame_.args.args = Move(host.args.size, host.args.args, operands_, &Twin::CopyIn);
    frame_.rets.rets = Move(host.rets.size, host.rets.rets, results_, &Twin::Spoil);
  }
  DeviceFrame(const DeviceFrame&) = delete;
  DeviceFrame& operator=(const DeviceFrame&) = delete;

  XLA_FFI_Error* Run(XLA_FFI_Handler* handler) {
    if (XLA_FFI_Error* error = handler(&frame_)) return error;
    for (Twin* twin : results_.twins) twin->CopyOut();
    Check(cudaStreamSynchronize(Stream()), "running the kernels");
    return nullptr;
  }

 private:
  struct Buffers {
    std::vector<XLA_FFI_Buffer> buffers;
    std::vector<void*> pointers;
    std::vector<Twin*> twins;  // of those with elements
  };

  void** Move(int64_t size, void** host, Buffers& to, void (Twin::*fill)()) {
    to.buffers.reserve(size);  // so that pointers to them stay
    for (int64_t i = 0; i < size; ++i) {
      XLA_FFI_Buffer& buffer = to.buffers.emplace_back(*static_cast<XLA_FFI_Buffer*>(host[i]));
      to.pointers.push_back(&buffer);
      if (Bytes(buffer) == 0) {
        buffer.data = nullptr;
        continue;
      }
      to.twins.push_back(&FindOrFill(buffer, fill));
      buffer.data = to.twins.back()->device();
    }
    return to.pointers.data();
  }

  Twin& FindOrFill(const XLA_FFI_Buffer& buffer, void (Twin::*fill)()) {
    const auto [found, is_new] = twins_.try_emplace(buffer.data, buffer);
    Twin& twin = found->second;
    if (is_new) (twin.*fill)();
    if (twin.bytes() != Bytes(buffer)) throw std::runtime_error("buffers overlap in part");
    return twin;
  }

  XLA_FFI_CallFrame frame_;
  XLA_FFI_Api api_;
  std::map<void*, Twin> twins_;  // by host address
  Buffers operands_, results_;
};

XLA_FFI_Error* MakeError(const XLA_FFI_Api* api, const char* message) {
  XLA_FFI_Error_Create_Args args{};
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message;
  args.errc = XLA_FFI_Error_Code_INTERNAL;
  return api->XLA_FFI_Error_Create(&args);
}

bool AsksForMetadata(const XLA_FFI_CallFrame& frame) {
  return frame.extension_start && frame.extension_start->type == XLA_FFI_Extension_Metadata;
}

XLA_FFI_Error* Call(XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
  if (AsksForMetadata(*frame) || frame->stage != XLA_FFI_ExecutionStage_EXECUTE) {
    return handler(frame);
  }
  static std::mutex mutex;  // XLA calls from many threads
  const std::lock_guard lock(mutex);
  try {
    return DeviceFrame(*frame).Run(handler);
  } catch (const std::runtime_error& error) {
    return MakeError(frame->api, error.what());
  }
}

// A handler knows nothing but its frame, so each has a trampoline of its own.
constexpr size_t kMost = 64;
std::array<XLA_FFI_Handler*, kMost> handlers;
size_t count = 0;

template <size_t kIndex>
XLA_FFI_Error* Trampoline(XLA_FFI_CallFrame* frame) {
  return Call(handlers[kIndex], frame);
}

template <size_t... kIndices>
XLA_FFI_Handler* TrampolineAt(size_t index, std::index_sequence<kIndices...>) {
  static constexpr std::array<XLA_FFI_Handler*, kMost> kTrampolines = {Trampoline<kIndices>...};
  return kTrampolines[index];
}

}  // namespace

// A handler for the CPU platform that runs `handler` on the GPU; nullptr when there are too many.
extern "C" XLA_FFI_Handler* eet_trampoline(XLA_FFI_Handler* handler) {
  if (count == kMost) return nullptr;
  handlers[count] = handler;
  return TrampolineAt(count++, std::make_index_sequence<kMost>());
}

// Writes the GPU's compute capability; returns why there is none, or nullptr.
extern "C" const char* eet_compute_capability(int* major, int* minor) {
  cudaError_t error = cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, 0);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(minor, cudaDevAttrComputeCapabilityMinor, 0);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
