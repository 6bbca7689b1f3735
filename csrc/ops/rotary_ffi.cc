// Handler of eet_rotary.
#include "core/ffi.h"
#include "ops/rotary.h"

namespace eet {

static ffi::Error RotaryHandler(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer table,
                                ffi::Result<ffi::AnyBuffer> y, bool interleaved) {
  const auto sizes = x.dimensions();
  const int64_t heads = sizes[sizes.size() - 2], head_dim = sizes[sizes.size() - 1];
  const int64_t pairs = table.dimensions()[table.dimensions().size() - 2];
  const int64_t tokens = table.element_count() / (2 * pairs);
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    Rotary(stream, RotaryArgs<T>{.x = Data<T>(x),
                                 .table = Data<float>(table),
                                 .y = Data<T>(y),
                                 .tokens = tokens,
                                 .heads = heads,
                                 .head_dim = head_dim,
                                 .pairs = pairs,
                                 .interleaved = interleaved});
    return LaunchStatus();
  });
}

EET_HANDLER(eet_rotary, RotaryHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // x
                .Arg<ffi::AnyBuffer>()  // table
                .Ret<ffi::AnyBuffer>()  // y
                .Attr<bool>("interleaved"));

}  // namespace eet
