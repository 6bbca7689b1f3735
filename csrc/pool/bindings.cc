// The pool's classes for Python: Pool, Lease and DeviceExhausted. eet_jax/pool.py is their face.
#include "pool/bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <vector>

#include "pool/lease.h"
#include "pool/pool.h"

namespace py = pybind11;

namespace eet {
namespace {

const SlabFunctions& FunctionsOf(const py::object& library) {
  const auto address = library.attr("symbol_address")("eet_slab_functions").cast<uintptr_t>();
  return *reinterpret_cast<const SlabFunctions*>(address);
}

uint64_t DeviceBytes(const py::object& library, int device) {
  SlabError error;
  const uint64_t bytes = FunctionsOf(library).device_bytes(device, &error);
  if (bytes == 0) throw std::runtime_error(error.text);
  return bytes;
}

std::shared_ptr<Pool> MakePool(const py::object& library, int device, uint64_t capacity,
                               uint64_t initial, bool guarded) {
  const SlabFunctions& functions = FunctionsOf(library);
  const py::gil_scoped_release released;
  return std::make_shared<Pool>(functions, device, capacity, initial, guarded);
}

Lease MakeLease(Pool& pool, uint64_t bytes, std::vector<int64_t> shape, uint8_t code,
                uint8_t bits) {
  return Lease(pool.Allocate(bytes), {.code = code, .bits = bits, .lanes = 1}, std::move(shape));
}

// A capsule that nobody consumed still owns the array.
void DeleteCapsule(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, "dltensor")) return;
  DeleteManagedTensor()(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")));
}

// The protocol's keywords. The memory has no pending writes to wait for, whatever the stream, and
// every consumer takes unversioned capsules, whatever its newest version.
py::object ExportLease(Lease& lease, const py::object&, const py::object&,
                       const std::optional<std::pair<int, int>>& dl_device,
                       std::optional<bool> copy) {
  const std::pair<int, int> device(lease.device().device_type, lease.device().device_id);
  if (copy.value_or(false)) throw py::buffer_error("a lease cannot be copied on export");
  if (dl_device.value_or(device) != device) {
    throw py::buffer_error("a lease cannot be exported to another device");
  }
  DLManagedTensor* tensor = lease.Export();
  PyObject* capsule = PyCapsule_New(tensor, "dltensor", &DeleteCapsule);
  if (!capsule) {
    tensor->deleter(tensor);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

void BindStats(py::module_& module) {
  py::class_<PoolStats>(module, "PoolStats")
      .def_readonly("capacity", &PoolStats::capacity)
      .def_readonly("in_use", &PoolStats::in_use)
      .def_readonly("peak", &PoolStats::peak)
      .def_readonly("largest_free", &PoolStats::largest_free)
      .def_readonly("device_allocations", &PoolStats::device_allocations)
      .def_readonly("leases", &PoolStats::leases);
}

void BindLease(py::module_& module) {
  py::class_<Lease>(module, "Lease")
      .def("__dlpack__", &ExportLease, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Lease& lease) {
        return py::make_tuple(lease.device().device_type, lease.device().device_id);
      });
}

}  // namespace

void BindPool(py::module_& module) {
  py::register_local_exception<DeviceExhausted>(module, "DeviceExhausted", PyExc_MemoryError);
  BindStats(module);
  BindLease(module);
  // Without the GIL wherever a thread may wait for the pool's mutex.
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Pool, std::shared_ptr<Pool>>(module, "Pool")
      .def(py::init(&MakePool), py::arg("library"), py::arg("device"), py::arg("capacity"),
           py::arg("initial"), py::arg("guarded"))
      .def("lease", &MakeLease, py::arg("bytes"), py::arg("shape"), py::arg("code"),
           py::arg("bits"), Released())
      .def("stats", &Pool::Stats, Released())
      .def("close", &Pool::Close, Released());
  module.def("device_bytes", &DeviceBytes, py::arg("library"), py::arg("device"));
}

}  // namespace eet
