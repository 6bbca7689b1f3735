// Handler of eet_mlp_block.
#include "ops/block_operands.h"

namespace eet {

// Operands: x, residual, feed-forward weights, workspace. Results: y, workspace.
static ffi::Error MlpBlockHandler(Stream stream, ffi::RemainingArgs args,
                                  ffi::RemainingRets results, ffi::Dictionary dictionary) {
  const BlockAttributes attrs(dictionary);
  Operands operands(args);
  const ffi::AnyBuffer x = operands.Next();
  return DispatchFloat(x.element_type(), [&]<typename T>(std::type_identity<T>) {
    MlpBlockArgs<T> block{};
    block.x = Data<T>(x);
    block.residual = operands.Next<T>();
    block.y = ResultData<T>(results, 0);
    ReadMlpWeights(operands, attrs, block);
    block.sizes.tokens = x.dimensions()[0];
    Workspace measure;
    MlpActivations<T>(measure, block.sizes, block.path);
    const auto workspace = ReadWorkspace(operands, measure.used());
    if (!workspace) return workspace.error();
    if (ffi::Error error = CheckState(args, results, attrs); error.failure()) return error;
    if (block.sizes.tokens > 0) MlpBlock(stream, block, *workspace);
    return LaunchStatus();
  });
}

EET_HANDLER(eet_mlp_block, MlpBlockHandler,
            ffi::Ffi::Bind().Ctx<StreamContext>().RemainingArgs().RemainingRets().Attrs());

}  // namespace eet
