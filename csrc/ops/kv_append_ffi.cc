// Handler of eet_kv_append.
#include "core/ffi.h"
#include "ops/kv_append.h"

namespace eet {

static ffi::Error KvAppendHandler(Stream stream, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                  ffi::AnyBuffer k_new, ffi::AnyBuffer v_new,
                                  ffi::AnyBuffer page_table, ffi::AnyBuffer rows,
                                  ffi::AnyBuffer positions, ffi::Result<ffi::AnyBuffer> k_out,
                                  ffi::Result<ffi::AnyBuffer> v_out, int64_t layer) {
  if (ffi::Error error = CheckInPlace("k", k, k_out); error.failure()) return error;
  if (ffi::Error error = CheckInPlace("v", v, v_out); error.failure()) return error;
  const auto sizes = k.dimensions();  // [layers, pages, kv_heads, page_size, head_dim]
  const int64_t offset = layer * sizes[1] * sizes[2] * sizes[3] * sizes[4];
  return DispatchFloat(k.element_type(), [&]<typename T>(std::type_identity<T>) {
    KvAppend(stream, KvAppendArgs<T>{.k_new = Data<T>(k_new),
                                     .v_new = Data<T>(v_new),
                                     .k = Data<T>(k_out) + offset,
                                     .v = Data<T>(v_out) + offset,
                                     .page_table = Data<int32_t>(page_table),
                                     .rows = Data<int32_t>(rows),
                                     .positions = Data<int32_t>(positions),
                                     .tokens = int64_t(rows.element_count()),
                                     .batch = page_table.dimensions()[0],
                                     .kv_heads = sizes[2],
                                     .head_dim = sizes[4],
                                     .pages = sizes[1],
                                     .page_size = sizes[3],
                                     .max_pages = page_table.dimensions()[1]});
    return LaunchStatus();
  });
}

EET_HANDLER(eet_kv_append, KvAppendHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // k
                .Arg<ffi::AnyBuffer>()  // v
                .Arg<ffi::AnyBuffer>()  // k_new
                .Arg<ffi::AnyBuffer>()  // v_new
                .Arg<ffi::AnyBuffer>()  // page_table
                .Arg<ffi::AnyBuffer>()  // rows
                .Arg<ffi::AnyBuffer>()  // positions
                .Ret<ffi::AnyBuffer>()  // k
                .Ret<ffi::AnyBuffer>()  // v
                .Attr<int64_t>("layer"));

}  // namespace eet
