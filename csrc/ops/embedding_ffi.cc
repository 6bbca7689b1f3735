// Handlers of eet_embedding and of eet_embedding_into, whose result takes over operand `into`.
#include "core/ffi.h"
#include "ops/embedding.h"

namespace eet {

static ffi::Error EmbeddingHandler(Stream stream, ffi::AnyBuffer tokens, ffi::AnyBuffer table,
                                   ffi::AnyBuffer positions, ffi::AnyBuffer position_table,
                                   ffi::Result<ffi::AnyBuffer> y, float scale) {
  return DispatchFloat(table.element_type(), [&]<typename T>(std::type_identity<T>) {
    Embedding(stream, EmbeddingArgs<T>{.tokens = Data<int32_t>(tokens),
                                       .table = Data<T>(table),
                                       .positions = OptionalData<int32_t>(positions),
                                       .position_table = OptionalData<T>(position_table),
                                       .y = Data<T>(y),
                                       .num_tokens = int64_t(tokens.element_count()),
                                       .vocab = table.dimensions()[0],
                                       .max_positions = position_table.dimensions()[0],
                                       .hidden = table.dimensions()[1],
                                       .scale = scale});
    return LaunchStatus();
  });
}

static ffi::Error EmbeddingIntoHandler(Stream stream, ffi::AnyBuffer tokens, ffi::AnyBuffer table,
                                       ffi::AnyBuffer positions, ffi::AnyBuffer position_table,
                                       ffi::AnyBuffer into, ffi::Result<ffi::AnyBuffer> y,
                                       float scale) {
  if (ffi::Error error = CheckInPlace("into", into, y); error.failure()) return error;
  return EmbeddingHandler(stream, tokens, table, positions, position_table, y, scale);
}

EET_HANDLER(eet_embedding, EmbeddingHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // tokens
                .Arg<ffi::AnyBuffer>()  // table
                .Arg<ffi::AnyBuffer>()  // positions
                .Arg<ffi::AnyBuffer>()  // position_table
                .Ret<ffi::AnyBuffer>()  // y
                .Attr<float>("scale"));

EET_HANDLER(eet_embedding_into, EmbeddingIntoHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // tokens
                .Arg<ffi::AnyBuffer>()  // table
                .Arg<ffi::AnyBuffer>()  // positions
                .Arg<ffi::AnyBuffer>()  // position_table
                .Arg<ffi::AnyBuffer>()  // into
                .Ret<ffi::AnyBuffer>()  // y
                .Attr<float>("scale"));

}  // namespace eet
