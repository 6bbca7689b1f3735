// Handler of eet_attention_block.
#include "ops/block_operands.h"

namespace eet {

// Operands: x, residual, attention weights, cache and tokens, workspace.
// Results: y, k, v, workspace.
static ffi::Error AttentionBlockHandler(Stream stream, ffi::RemainingArgs args,
                                        ffi::RemainingRets results, ffi::Dictionary dictionary) {
  const BlockAttributes attrs(dictionary);
  Operands operands(args);
  const ffi::AnyBuffer x = operands.Next();
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    AttentionBlockArgs<T> block{};
    block.x = Data<T>(x);
    block.residual = operands.Next<T>();
    block.y = ResultData<T>(results, 0);
    ReadAttentionWeights(operands, attrs, block);
    ReadCacheAndTokens(operands, attrs, block);
    Workspace measure;
    AttentionActivations<T>(measure, block.sizes, block.path);
    const auto workspace = ReadWorkspace(operands, measure.used());
    if (!workspace) return workspace.error();
    if (ffi::Error error = CheckState(args, results, attrs); error.failure()) return error;
    if (block.sizes.tokens > 0) AttentionBlock(stream, block, *workspace);
    return LaunchStatus();
  });
}

EET_HANDLER(eet_attention_block, AttentionBlockHandler,
            ffi::Ffi::Bind().Ctx<StreamContext>().RemainingArgs().RemainingRets().Attrs());

}  // namespace eet
