// What a library says of its own build, checked before its handlers are registered.
#include "xla/ffi/api/c_api.h"

#define EET_EXPORT extern "C" __attribute__((visibility("default")))

// The version of the C symbols between the Python module and the libraries.
EET_EXPORT int eet_abi_version() { return 1; }

EET_EXPORT const char* eet_source_hash() { return EET_SOURCE_HASH; }

EET_EXPORT int eet_ffi_api_major() { return XLA_FFI_API_MAJOR; }
EET_EXPORT int eet_ffi_api_minor() { return XLA_FFI_API_MINOR; }

#ifdef EET_RACECHECK
// Not called: tests/cuda_on_cpu/sanitize looks for the name.
EET_EXPORT int eet_built_for_racecheck() { return 1; }
#endif
