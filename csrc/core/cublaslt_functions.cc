// Loads cuBLASLt. XLA has loaded it as a rule; else the run path of this library tells where the
// wheel is, seen from where this library is installed.
#include "core/cublaslt_functions.h"

#include <dlfcn.h>

namespace eet {

static constexpr const char* kLibrary = "libcublasLt.so.13";

// Finds functions in a library and remembers what is missing.
class LtFinder {
 public:
  explicit LtFinder(LtFunctions& functions) : problem_(functions.problem) {
    library_ = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library_) return;
    problem_ = std::string(kLibrary) + " cannot be loaded (" + dlerror() +
               "): pip install \"nvidia-cublas>=13,<14\"";
  }

  template <typename F>
  void Find(const char* name, F& function) {
    if (!library_) return;
    function = reinterpret_cast<F>(dlsym(library_, name));
    if (!function) problem_ = std::string(kLibrary) + " has no " + name;
  }

 private:
  std::string& problem_;
  void* library_;
};

static LtFunctions Load() {
  LtFunctions functions{};
  LtFinder finder(functions);
  finder.Find("cublasLtCreate", functions.create);
  finder.Find("cublasLtGetStatusString", functions.status_string);
  finder.Find("cublasLtMatmul", functions.matmul);
  finder.Find("cublasLtMatmulAlgoCheck", functions.check);
  finder.Find("cublasLtMatmulAlgoGetHeuristic", functions.heuristic);
  finder.Find("cublasLtMatmulDescCreate", functions.create_operation);
  finder.Find("cublasLtMatmulDescDestroy", functions.destroy_operation);
  finder.Find("cublasLtMatmulDescSetAttribute", functions.set_operation);
  finder.Find("cublasLtMatmulPreferenceCreate", functions.create_preference);
  finder.Find("cublasLtMatmulPreferenceDestroy", functions.destroy_preference);
  finder.Find("cublasLtMatmulPreferenceSetAttribute", functions.set_preference);
  finder.Find("cublasLtMatrixLayoutCreate", functions.create_layout);
  finder.Find("cublasLtMatrixLayoutDestroy", functions.destroy_layout);
  return functions;
}

const LtFunctions& Lt() {
  static const LtFunctions functions = Load();
  return functions;
}

}  // namespace eet
