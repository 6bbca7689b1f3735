// The Python module: loads the kernel libraries, hands their handlers to JAX, and holds the pool.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "ops/decode_step.h"
#include "ops/decoder_layer.h"
#include "pool/bindings.h"

namespace py = pybind11;

namespace eet {

// One kernel library: C symbols, no Python inside, so that one build serves every Python version.
class Library {
 public:
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error(dlerror());
  }

  // Stays open: JAX keeps pointers to its handlers for the life of the process.
  void* Symbol(const std::string& name) const {
    void* symbol = dlsym(handle_, name.c_str());
    if (!symbol) throw py::key_error("the library has no symbol " + name);
    return symbol;
  }

  py::capsule Handler(const std::string& name) const {
    return py::capsule(Symbol(name), "xla._CUSTOM_CALL_TARGET");
  }

  int Integer(const std::string& name) const { return reinterpret_cast<int (*)()>(Symbol(name))(); }

  std::string SourceHash() const {
    return reinterpret_cast<const char* (*)()>(Symbol("eet_source_hash"))();
  }

 private:
  void* handle_;
};

// The builds of the CPU library that this processor runs, the fastest first: that of the widest
// instructions, but Intel's processors multiply fewer pairs of bfloat16 in a cycle than floats. On
// a Xeon prefill in bfloat16 took 648 ms with pairs, 430 without.
static std::vector<std::string> CpuVariants() {
  std::vector<std::string> variants = {"baseline"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("x86-64-v4");
  if (__builtin_cpu_supports("x86-64-v3")) variants.insert(variants.begin(), "avx2");
  if (avx512) variants.insert(variants.begin(), "avx512");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    variants.insert(variants.begin() + (__builtin_cpu_is("intel") ? 1 : 0), "avx512_bf16");
  }
#endif
  return variants;
}

static int64_t LayerWorkspace(int64_t tokens, int64_t hidden, int64_t heads, int64_t kv_heads,
                              int64_t head_dim, int64_t intermediate, int64_t max_keys,
                              int64_t itemsize, bool gated, bool parallel_residual, bool decode) {
  const AttentionSizes attention{.tokens = tokens,
                                 .hidden = hidden,
                                 .heads = heads,
                                 .kv_heads = kv_heads,
                                 .head_dim = head_dim,
                                 .rotary_dim = 0,
                                 .batch = 0,
                                 .pages = 0,
                                 .page_size = 1,
                                 .max_pages = max_keys};
  const MlpSizes mlp{
      .tokens = tokens, .hidden = hidden, .intermediate = intermediate, .gated = gated};
  const LinearPath path = decode ? LinearPath::kDecode : LinearPath::kPrefill;
  return itemsize == sizeof(float)
             ? DecoderLayerWorkspace<float>(attention, mlp, parallel_residual, path)
             : DecoderLayerWorkspace<bfloat16>(attention, mlp, parallel_residual, path);
}

int64_t StepBytes(int64_t batch, int64_t layers, int64_t hidden, int64_t heads, int64_t kv_heads,
                  int64_t head_dim, int64_t intermediate, int64_t max_keys) {
  return DecodeStepExchange({.batch = batch,
                             .layers = layers,
                             .vocab = 0,
                             .hidden = hidden,
                             .intermediate = intermediate,
                             .heads = heads,
                             .kv_heads = kv_heads,
                             .head_dim = head_dim,
                             .rotary_dim = 0,
                             .pages = 0,
                             .page_size = 1,
                             .max_pages = max_keys,
                             .gated = false})
      .bytes();
}

PYBIND11_MODULE(_native, module) {
  py::class_<Library>(module, "Library")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def("handler", &Library::Handler, py::arg("name"))
      .def("symbol_address",
           [](const Library& library, const std::string& name) {
             return reinterpret_cast<uintptr_t>(library.Symbol(name));
           })
      .def_property_readonly(
          "abi_version", [](const Library& library) { return library.Integer("eet_abi_version"); })
      .def_property_readonly("ffi_api_version",
                             [](const Library& library) {
                               return py::make_tuple(library.Integer("eet_ffi_api_major"),
                                                     library.Integer("eet_ffi_api_minor"));
                             })
      .def_property_readonly("source_hash", &Library::SourceHash);
  module.def("cpu_variants", &CpuVariants);
  module.def("decoder_layer_workspace", &LayerWorkspace, py::kw_only(), py::arg("tokens"),
             py::arg("hidden"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
             py::arg("intermediate"), py::arg("max_keys"), py::arg("itemsize"), py::arg("gated"),
             py::arg("parallel_residual"), py::arg("decode"));
  module.def("decode_step_bytes", &StepBytes, py::kw_only(), py::arg("batch"), py::arg("layers"),
             py::arg("hidden"), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
             py::arg("intermediate"), py::arg("max_keys"));
  module.attr("abi_version") = 1;
  module.attr("source_hash") = EET_SOURCE_HASH;
  BindPool(module);
}

}  // namespace eet
