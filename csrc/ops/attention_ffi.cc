// Handler of eet_attention.
#include "core/ffi.h"
#include "ops/attention.h"

namespace eet {

// Keys and values of five dimensions are a paged cache, of four the keys of each batch row.
template <typename T>
static void ReadKeys(const ffi::AnyBuffer& k, const ffi::AnyBuffer& v,
                     const ffi::AnyBuffer& page_table, int64_t layer, AttentionArgs<T>& args) {
  const auto shape = k.dimensions();
  args.k = Data<T>(k);
  args.v = Data<T>(v);
  if (shape.size() == 4) {
    args.key_len = shape[1];
    args.kv_heads = shape[2];
    return;
  }
  const int64_t layer_size = shape[1] * shape[2] * shape[3] * shape[4];
  args.k += layer * layer_size;
  args.v += layer * layer_size;
  args.pages = shape[1];
  args.kv_heads = shape[2];
  args.page_size = shape[3];
  args.page_table = Data<int32_t>(page_table);
  args.batch = page_table.dimensions()[0];
  args.max_pages = page_table.dimensions()[1];
}

static ffi::Error AttentionHandler(Stream stream, ffi::AnyBuffer q, ffi::AnyBuffer k,
                                   ffi::AnyBuffer v, ffi::AnyBuffer lengths,
                                   ffi::AnyBuffer positions, ffi::AnyBuffer rows,
                                   ffi::AnyBuffer page_table, ffi::AnyBuffer alibi_slopes,
                                   ffi::Result<ffi::AnyBuffer> out, int64_t layer, int64_t window,
                                   float scale, float soft_cap, bool causal) {
  return DispatchFloat(q.element_type(), [&]<typename T>(std::type_identity<T>) {
    const auto shape = q.dimensions();
    const size_t rank = shape.size();
    AttentionArgs<T> args{};
    args.q = Data<T>(q);
    args.out = Data<T>(out);
    args.heads = shape[rank - 2];
    args.head_dim = shape[rank - 1];
    args.tokens = rank == 4 ? shape[0] * shape[1] : shape[0];
    args.batch = shape[0];
    args.query_len = rank == 4 ? shape[1] : 0;
    ReadKeys(k, v, page_table, layer, args);
    args.rows = OptionalData<int32_t>(rows);
    args.positions = OptionalData<int32_t>(positions);
    args.lengths = OptionalData<int32_t>(lengths);
    args.alibi_slopes = OptionalData<float>(alibi_slopes);
    args.scale = scale;
    args.soft_cap = soft_cap;
    args.window = window;
    args.causal = causal;
    Attention(stream, args);
    return LaunchStatus();
  });
}

EET_HANDLER(eet_attention, AttentionHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // q
                .Arg<ffi::AnyBuffer>()  // k
                .Arg<ffi::AnyBuffer>()  // v
                .Arg<ffi::AnyBuffer>()  // lengths
                .Arg<ffi::AnyBuffer>()  // positions
                .Arg<ffi::AnyBuffer>()  // rows
                .Arg<ffi::AnyBuffer>()  // page_table
                .Arg<ffi::AnyBuffer>()  // alibi_slopes
                .Ret<ffi::AnyBuffer>()  // out
                .Attr<int64_t>("layer")
                .Attr<int64_t>("window")
                .Attr<float>("scale")
                .Attr<float>("soft_cap")
                .Attr<bool>("causal"));

}  // namespace eet
