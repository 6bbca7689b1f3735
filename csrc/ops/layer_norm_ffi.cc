// Handler of eet_layer_norm.
#include "core/ffi.h"
#include "ops/layer_norm.h"

namespace eet {

static ffi::Error LayerNormHandler(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                                   ffi::AnyBuffer bias, ffi::Result<ffi::AnyBuffer> y, float eps) {
  const int64_t cols = scale.element_count();
  const int64_t rows = cols == 0 ? 0 : x.element_count() / cols;
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    LayerNorm(stream, LayerNormArgs<T>{.x = Data<T>(x),
                                       .scale = Data<T>(scale),
                                       .bias = OptionalData<T>(bias),
                                       .y = Data<T>(y),
                                       .rows = rows,
                                       .cols = cols,
                                       .eps = eps});
    return LaunchStatus();
  });
}

EET_HANDLER(eet_layer_norm, LayerNormHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // x
                .Arg<ffi::AnyBuffer>()  // scale
                .Arg<ffi::AnyBuffer>()  // bias
                .Ret<ffi::AnyBuffer>()  // y
                .Attr<float>("eps"));

}  // namespace eet
