// Handler of eet_mlp.
#include "core/ffi.h"
#include "ops/mlp.h"

namespace eet {

static ffi::Error MlpHandler(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer up_kernel,
                             ffi::AnyBuffer down_kernel, ffi::AnyBuffer up_bias,
                             ffi::AnyBuffer down_bias, ffi::AnyBuffer residual,
                             ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> activated,
                             ffi::Result<ffi::AnyBuffer> scratch, int64_t activation, bool gated,
                             int64_t path) {
  const int64_t hidden = down_kernel.dimensions()[0], intermediate = down_kernel.dimensions()[1];
  const int64_t rows = hidden == 0 ? 0 : x.element_count() / hidden;
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    if (rows > 0) {
      Mlp(stream, MlpArgs<T>{.x = Data<T>(x),
                             .up_kernel = Data<T>(up_kernel),
                             .up_bias = OptionalData<T>(up_bias),
                             .down_kernel = Data<T>(down_kernel),
                             .down_bias = OptionalData<T>(down_bias),
                             .residual = OptionalData<T>(residual),
                             .y = Data<T>(y),
                             .activated = Data<T>(activated),
                             .scratch = Data<T>(scratch),
                             .rows = rows,
                             .hidden = hidden,
                             .intermediate = intermediate,
                             .activation = Activation(activation),
                             .gated = gated,
                             .path = LinearPath(path)});
    }
    return LaunchStatus();
  });
}

EET_HANDLER(eet_mlp, MlpHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // x
                .Arg<ffi::AnyBuffer>()  // up_kernel
                .Arg<ffi::AnyBuffer>()  // down_kernel
                .Arg<ffi::AnyBuffer>()  // up_bias
                .Arg<ffi::AnyBuffer>()  // down_bias
                .Arg<ffi::AnyBuffer>()  // residual
                .Ret<ffi::AnyBuffer>()  // y
                .Ret<ffi::AnyBuffer>()  // activated: scratch memory too
                .Ret<ffi::AnyBuffer>()  // scratch
                .Attr<int64_t>("activation")
                .Attr<bool>("gated")
                .Attr<int64_t>("path"));

}  // namespace eet
