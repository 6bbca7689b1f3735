// Handler of eet_decode_attention.
#include "core/ffi.h"
#include "ops/decode_attention.h"

namespace eet {

static ffi::Error DecodeAttentionHandler(Stream stream, ffi::AnyBuffer q, ffi::AnyBuffer k,
                                         ffi::AnyBuffer v, ffi::AnyBuffer page_table,
                                         ffi::AnyBuffer rows, ffi::AnyBuffer positions,
                                         ffi::AnyBuffer alibi_slopes,
                                         ffi::Result<ffi::AnyBuffer> out,
                                         ffi::Result<ffi::AnyBuffer> scratch, int64_t layer,
                                         int64_t window, float scale, float soft_cap) {
  const auto sizes = k.dimensions();  // [layers, pages, kv_heads, page_size, head_dim]
  const int64_t offset = layer * sizes[1] * sizes[2] * sizes[3] * sizes[4];
  const int64_t tokens = q.dimensions()[0], heads = q.dimensions()[1];
  const int64_t max_pages = page_table.dimensions()[1];
  const int64_t needed =
      sizeof(float) * DecodeAttentionScratch(tokens, heads, sizes[4], max_pages * sizes[3]);
  if (int64_t(scratch->size_bytes()) < needed) {
    return ffi::Error::InvalidArgument("scratch must have at least " + std::to_string(needed) +
                                       " bytes, got " + std::to_string(scratch->size_bytes()));
  }
  return DispatchFloat(q.element_type(), [&]<typename T>(std::type_identity<T>) {
    DecodeAttention(stream,
                    DecodeAttentionArgs<T>{.q = Data<T>(q),
                                           .k = Data<T>(k) + offset,
                                           .v = Data<T>(v) + offset,
                                           .page_table = Data<int32_t>(page_table),
                                           .rows = Data<int32_t>(rows),
                                           .positions = Data<int32_t>(positions),
                                           .alibi_slopes = OptionalData<float>(alibi_slopes),
                                           .out = Data<T>(out),
                                           .scratch = Data<float>(scratch),
                                           .tokens = tokens,
                                           .batch = page_table.dimensions()[0],
                                           .heads = heads,
                                           .kv_heads = sizes[2],
                                           .head_dim = sizes[4],
                                           .pages = sizes[1],
                                           .page_size = sizes[3],
                                           .max_pages = max_pages,
                                           .scale = scale,
                                           .soft_cap = soft_cap,
                                           .window = window});
    return LaunchStatus();
  });
}

EET_HANDLER(eet_decode_attention, DecodeAttentionHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // q
                .Arg<ffi::AnyBuffer>()  // k
                .Arg<ffi::AnyBuffer>()  // v
                .Arg<ffi::AnyBuffer>()  // page_table
                .Arg<ffi::AnyBuffer>()  // rows
                .Arg<ffi::AnyBuffer>()  // positions
                .Arg<ffi::AnyBuffer>()  // alibi_slopes
                .Ret<ffi::AnyBuffer>()  // out
                .Ret<ffi::AnyBuffer>()  // scratch
                .Attr<int64_t>("layer")
                .Attr<int64_t>("window")
                .Attr<float>("scale")
                .Attr<float>("soft_cap"));

}  // namespace eet
