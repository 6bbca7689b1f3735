// Operands of handlers that have many, read one after the other. Included by handlers only.
#pragma once

#include "core/ffi.h"

namespace eet {

// The operands of a handler with too many of them to bind one by one.
class Operands {
 public:
  explicit Operands(const ffi::RemainingArgs& args) : args_(args) {}

  ffi::AnyBuffer Next() { return *args_.get<ffi::AnyBuffer>(next_++); }

  // The next operand's data; nullptr when it is absent.
  template <typename T>
  const T* Next() {
    return OptionalData<T>(Next());
  }

  // One layer's part of the next operand, whose first axis is the layer; nullptr when it is absent.
  template <typename T>
  const T* NextLayer(int64_t layer) {
    const ffi::AnyBuffer stack = Next();
    if (stack.element_count() == 0) return nullptr;
    return Data<T>(stack) + layer * (stack.element_count() / stack.dimensions()[0]);
  }

 private:
  const ffi::RemainingArgs& args_;
  size_t next_ = 0;
};

// The data of result `index`.
template <typename T>
T* ResultData(const ffi::RemainingRets& results, size_t index) {
  return static_cast<T*>((*results.get<ffi::AnyBuffer>(index))->untyped_data());
}

}  // namespace eet
