// XLA's own, and a stream for handlers that ask for CUDA's on XLA's CPU platform.
#pragma once

#include <cuda_runtime.h>
#include_next <xla/ffi/api/ffi.h>

template <>
struct xla::ffi::CtxDecoding<xla::ffi::PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;

  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return cudaStream_t{};
  }
};
