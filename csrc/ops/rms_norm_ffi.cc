// Handler of eet_rms_norm.
#include "core/ffi.h"
#include "ops/rms_norm.h"

namespace eet {

static ffi::Error RmsNormHandler(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                                 ffi::Result<ffi::AnyBuffer> y, float eps) {
  const int64_t cols = scale.element_count();
  const int64_t rows = cols == 0 ? 0 : x.element_count() / cols;
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    RmsNorm(stream, RmsNormArgs<T>{.x = Data<T>(x),
                                   .scale = Data<T>(scale),
                                   .y = Data<T>(y),
                                   .rows = rows,
                                   .cols = cols,
                                   .eps = eps});
    return LaunchStatus();
  });
}

EET_HANDLER(eet_rms_norm, RmsNormHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // x
                .Arg<ffi::AnyBuffer>()  // scale
                .Ret<ffi::AnyBuffer>()  // y
                .Attr<float>("eps"));

}  // namespace eet
