// The pool's classes for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace eet {

void BindPool(pybind11::module_& module);

}  // namespace eet
