// Where a kernel runs: a CUDA stream, or XLA's host thread pool.
#pragma once

#ifdef EET_CUDA

#include <cuda_runtime_api.h>

namespace eet {
using Stream = cudaStream_t;
}

#else

#include <functional>

namespace eet {

// The thread pool behind plain pointers, so that kernels do not include XLA.
struct Stream {
  void* pool = nullptr;  // valid for the duration of the handler
  void (*schedule)(void* pool, std::function<void()> task) = nullptr;
  int num_threads = 1;
};

}  // namespace eet

#endif
