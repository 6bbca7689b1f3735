// The owner behind an exported array: when it is deleted, the block returns to its pool.
#include "pool/lease.h"

#include <stdexcept>
#include <utility>

namespace eet {
namespace {

struct Owner {
  DLManagedTensor tensor;
  std::vector<int64_t> shape;
  std::unique_ptr<PoolBlock> block;
};

}  // namespace

Lease::Lease(std::unique_ptr<PoolBlock> block, DLDataType dtype, std::vector<int64_t> shape) {
  device_ = {block->pool().dlpack_device_type(), block->pool().device()};
  auto* owner = new Owner{.tensor = {}, .shape = std::move(shape), .block = std::move(block)};
  owner->tensor = {
      .dl_tensor = {.data = owner->block->data(),
                    .device = device_,
                    .ndim = int32_t(owner->shape.size()),
                    .dtype = dtype,
                    .shape = owner->shape.data(),
                    .strides = nullptr,
                    .byte_offset = 0},
      .manager_ctx = owner,
      .deleter = [](DLManagedTensor* self) { delete static_cast<Owner*>(self->manager_ctx); },
  };
  tensor_.reset(&owner->tensor);
}

DLManagedTensor* Lease::Export() {
  if (!tensor_) throw std::invalid_argument("a lease is exported only once");
  return tensor_.release();
}

}  // namespace eet
