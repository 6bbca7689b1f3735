// Handler of eet_decoder_layer.
#include "ops/block_operands.h"

namespace eet {

// `scales`: of the layers' first norms.
template <typename T>
static LayerPlace<T> PlaceOf(const BlockAttributes& attrs, const ffi::AnyBuffer& scales) {
  const auto sizes = scales.dimensions();  // layers, hidden
  const int64_t next = attrs.layer + 1;
  return {.follows = attrs.consecutive,
          .next_scale = next < sizes[0] ? Data<T>(scales) + next * sizes[1] : nullptr};
}

// Operands: x, attention weights, feed-forward weights, cache and tokens, workspace.
// Results: x, k, v, workspace, all in place. x may have more rows than there are tokens.
static ffi::Error DecoderLayerHandler(Stream stream, ffi::RemainingArgs args,
                                      ffi::RemainingRets results, ffi::Dictionary dictionary) {
  const BlockAttributes attrs(dictionary);
  Operands operands(args);
  const ffi::AnyBuffer x = operands.Next();
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    AttentionBlockArgs<T> attention{};
    MlpBlockArgs<T> mlp{};
    attention.x = attention.y = ResultData<T>(results, 0);
    ReadAttentionWeights(operands, attrs, attention);
    ReadMlpWeights(operands, attrs, mlp);
    ReadCacheAndTokens(operands, attrs, attention);
    mlp.sizes.tokens = attention.sizes.tokens;
    const auto workspace =
        ReadWorkspace(operands, DecoderLayerWorkspace<T>(attention.sizes, mlp.sizes,
                                                         attrs.parallel_residual, attrs.path()));
    if (!workspace) return workspace.error();
    if (ffi::Error error = CheckPiece("x", x, *results.get<ffi::AnyBuffer>(0), false);
        error.failure()) {
      return error;
    }
    if (ffi::Error error = CheckState(args, results, attrs); error.failure()) return error;
    if (attention.sizes.tokens > 0) {
      const auto place = PlaceOf<T>(attrs, *args.get<ffi::AnyBuffer>(1));
      DecoderLayer(stream, attention, mlp, attrs.parallel_residual, place, *workspace);
    }
    return LaunchStatus();
  });
}

EET_HANDLER(eet_decoder_layer, DecoderLayerHandler,
            ffi::Ffi::Bind().Ctx<StreamContext>().RemainingArgs().RemainingRets().Attrs());

}  // namespace eet
