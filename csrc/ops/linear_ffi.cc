// Handler of eet_linear.
#include "core/ffi.h"
#include "ops/linear.h"

namespace eet {

template <typename T, typename Y>
static ffi::Error RunLinear(Stream stream, LinearArgs<T, Y> args, const ffi::AnyBuffer& residual,
                            ffi::Result<ffi::AnyBuffer>& y) {
  args.residual = OptionalData<Y>(residual);
  args.y = Data<Y>(y);
  args.rows = args.out == 0 ? 0 : y->element_count() / args.out;
  if (args.rows > 0) Linear(stream, args);
  return LaunchStatus();
}

static ffi::Error LinearHandler(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                                ffi::AnyBuffer bias, ffi::AnyBuffer residual,
                                ffi::Result<ffi::AnyBuffer> y, ffi::Result<ffi::AnyBuffer> scratch,
                                int64_t activation, int64_t path, bool to_float32) {
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    const auto run = [&]<typename Y>(std::type_identity<Y>) {
      LinearArgs<T, Y> args{};
      args.x = Data<T>(x);
      args.kernel = Data<T>(kernel);
      args.bias = OptionalData<T>(bias);
      args.scratch = Data<T>(scratch);
      args.out = kernel.dimensions()[0];
      args.in = kernel.dimensions()[1];
      args.activation = Activation(activation);
      args.path = LinearPath(path);
      return RunLinear(stream, args, residual, y);
    };
    return to_float32 ? run(std::type_identity<float>{}) : run(std::type_identity<T>{});
  });
}

EET_HANDLER(eet_linear, LinearHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // x
                .Arg<ffi::AnyBuffer>()  // kernel
                .Arg<ffi::AnyBuffer>()  // bias
                .Arg<ffi::AnyBuffer>()  // residual
                .Ret<ffi::AnyBuffer>()  // y
                .Ret<ffi::AnyBuffer>()  // scratch
                .Attr<int64_t>("activation")
                .Attr<int64_t>("path")
                .Attr<bool>("to_float32"));

}  // namespace eet
