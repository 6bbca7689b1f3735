// What handlers share: XLA buffers to typed pointers, dtype dispatch, the stream, launch errors.
// Compiled once for each platform; kernels never include it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "core/launch_problem.h"
#include "core/stream.h"
#include "core/types.h"
#include "xla/ffi/api/ffi.h"

namespace eet {

namespace ffi = xla::ffi;

#ifdef EET_CUDA

using StreamContext = ffi::PlatformStream<cudaStream_t>;

inline ffi::Error LaunchStatus() {
  const std::string problem = std::exchange(LaunchProblem(), {});
  if (!problem.empty()) return ffi::Error::Internal(problem);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? ffi::Error::Success()
                              : ffi::Error::Internal(cudaGetErrorString(error));
}

#else

struct StreamContext {};

inline ffi::Error LaunchStatus() { return ffi::Error::Success(); }

#endif

// Calls f(std::type_identity<T>{}) with the C++ type of `dtype`; f returns an ffi::Error.
template <typename F>
ffi::Error DispatchFloat(ffi::DataType dtype, F&& f) {
  switch (dtype) {
    case ffi::F32:
      return f(std::type_identity<float>{});
    case ffi::BF16:
      return f(std::type_identity<bfloat16>{});
    case ffi::F16:
      return f(std::type_identity<float16>{});
    default:
      return ffi::Error::InvalidArgument("dtype must be float32, bfloat16 or float16");
  }
}

template <typename T>
const T* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<const T*>(buffer.untyped_data());
}

template <typename T>
T* Data(ffi::Result<ffi::AnyBuffer>& buffer) {
  return static_cast<T*>(buffer->untyped_data());
}

// The data of an optional operand: nullptr when it is absent, which is an array without elements.
template <typename T>
const T* OptionalData(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() == 0 ? nullptr : Data<T>(buffer);
}

// State is updated in place: XLA must have given the result the operand's own memory.
inline ffi::Error CheckInPlace(const char* name, const ffi::AnyBuffer& operand,
                               ffi::Result<ffi::AnyBuffer>& result) {
  if (operand.untyped_data() == result->untyped_data()) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(name) + " was copied by XLA instead of updated in place");
}

}  // namespace eet

#ifndef EET_CUDA

namespace xla::ffi {

template <>
struct CtxDecoding<eet::StreamContext> {
  using Type = eet::Stream;

  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                                    DiagnosticEngine& diagnostic) {
    // A handler decodes and runs on one thread, and schedules only while it runs.
    static thread_local std::optional<ThreadPool> pool;
    const auto decoded = CtxDecoding<ThreadPool>::Decode(api, context, diagnostic);
    if (!decoded) return std::nullopt;
    pool.emplace(*decoded);
    return eet::Stream{.pool = &*pool,
                       .schedule =
                           [](void* target, std::function<void()> task) {
                             static_cast<ThreadPool*>(target)->Schedule(std::move(task));
                           },
                       .num_threads = static_cast<int>(pool->num_threads())};
  }
};

}  // namespace xla::ffi

#endif

// Defines the exported C symbol of a handler. Handlers only launch, so that XLA may capture them in
// CUDA graphs.
#define EET_HANDLER(symbol, function, ...)                                                     \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* symbol(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function, __VA_ARGS__, {ffi::Traits::kCmdBufferCompatible})
