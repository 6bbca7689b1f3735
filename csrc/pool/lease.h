// A block of a pool as an array that DLPack exports, once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pool/dlpack.h"
#include "pool/pool.h"

namespace eet {

struct DeleteManagedTensor {
  void operator()(DLManagedTensor* tensor) const { tensor->deleter(tensor); }
};

class Lease {
 public:
  // `block` holds a row-major array of `shape` and `dtype`.
  Lease(std::unique_ptr<PoolBlock> block, DLDataType dtype, std::vector<int64_t> shape);

  // The array, whose owner calls its deleter, on any thread. Throws std::invalid_argument the
  // second time: two owners could both donate the memory.
  DLManagedTensor* Export();

  DLDevice device() const { return device_; }

 private:
  std::unique_ptr<DLManagedTensor, DeleteManagedTensor> tensor_;  // nullptr after Export
  DLDevice device_;
};

}  // namespace eet
