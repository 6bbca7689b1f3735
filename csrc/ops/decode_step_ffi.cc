// Handler of eet_decode_step, for CUDA alone.
#ifdef EET_CUDA

#include "ops/block_operands.h"
#include "ops/decode_step.h"

namespace eet {

template <typename T>
static NormWeights<T> StackedNorm(Operands& operands, int64_t kind, float eps) {
  NormWeights<T> norm{.kind = NormKind(kind), .scale = nullptr, .bias = nullptr, .eps = eps};
  norm.scale = operands.Next<T>();
  norm.bias = operands.Next<T>();
  return norm;
}

// Operands: x, attention weights, feed-forward weights, final norm, head, windows, cache and
// tokens, workspace. Results: logits, k, v, workspace, status; k, v and workspace in place.
static ffi::Error DecodeStepHandler(Stream stream, int64_t norm, int64_t activation, float eps,
                                    float scale, bool gated, bool pooled, int64_t wait_limit,
                                    ffi::RemainingArgs args, ffi::RemainingRets results) {
  Operands operands(args);
  const ffi::AnyBuffer x = operands.Next();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    DecodeStepArgs<T> step{};
    DecodeStepSizes& sizes = step.sizes;
    step.x = Data<T>(x);
    sizes.hidden = x.dimensions()[1];
    sizes.gated = gated;
    step.attention_norm = StackedNorm<T>(operands, norm, eps);
    step.qkv_kernel = operands.Next<T>();
    step.qkv_bias = operands.Next<T>();
    step.q_norm = operands.Next<T>();
    step.k_norm = operands.Next<T>();
    const ffi::AnyBuffer o_kernel = operands.Next();
    step.o_kernel = Data<T>(o_kernel);
    sizes.layers = o_kernel.dimensions()[0];
    step.o_bias = operands.Next<T>();
    step.mlp_norm = StackedNorm<T>(operands, norm, eps);
    step.up_kernel = operands.Next<T>();
    step.up_bias = operands.Next<T>();
    const ffi::AnyBuffer down_kernel = operands.Next();
    step.down_kernel = Data<T>(down_kernel);
    sizes.inner = down_kernel.dimensions()[2];
    step.down_bias = operands.Next<T>();
    step.final_norm = StackedNorm<T>(operands, norm, eps);
    const ffi::AnyBuffer head = operands.Next();
    step.head = Data<T>(head);
    sizes.vocab = head.dimensions()[0];
    step.windows = operands.Next<int32_t>();
    const ffi::AnyBuffer k = operands.Next(), v = operands.Next(), page_table = operands.Next();
    step.k = ResultData<T>(results, 1);
    step.v = ResultData<T>(results, 2);
    sizes.pages = k.dimensions()[1];
    sizes.kv_heads = k.dimensions()[2];
    sizes.page_size = k.dimensions()[3];
    sizes.head_dim = k.dimensions()[4];
    sizes.heads = o_kernel.dimensions()[2] / sizes.head_dim;
    step.page_table = Data<int32_t>(page_table);
    sizes.max_pages = page_table.dimensions()[1];
    const ffi::AnyBuffer rows = operands.Next();
    step.rows = Data<int32_t>(rows);
    sizes.batch = rows.element_count();
    step.positions = operands.Next<int32_t>();
    const ffi::AnyBuffer rotary = operands.Next();
    step.rotary_table = OptionalData<float>(rotary);
    sizes.rotary_dim = step.rotary_table ? 2 * rotary.dimensions()[1] : 0;
    const ffi::AnyBuffer workspace = operands.Next();
    step.exchange = workspace.untyped_data();
    step.logits = ResultData<float>(results, 0);
    step.status = ResultData<int32_t>(results, 4);
    step.activation = Activation(activation);
    step.scale = scale;
    step.wait_limit = 1000 * wait_limit;

    const char* names[] = {"k", "v", "workspace"};
    const ffi::AnyBuffer pieces[] = {k, v, workspace};
    for (int i = 0; i < 3; ++i) {
      const ffi::Error error =
          CheckPiece(names[i], pieces[i], *results.get<ffi::AnyBuffer>(i + 1), pooled);
      if (error.failure()) return error;
    }
    const int64_t needed = DecodeStepExchange(sizes).bytes();
    if (int64_t(workspace.size_bytes()) < needed) {
      return ffi::Error::InvalidArgument("workspace must have at least " + std::to_string(needed) +
                                         " bytes, got " + std::to_string(workspace.size_bytes()));
    }
    DecodeStep(stream, step);
    return LaunchStatus();
  };
  if (x.element_type() == ffi::BF16) return run(std::type_identity<bfloat16>{});
  if (x.element_type() == ffi::F16) return run(std::type_identity<float16>{});
  return ffi::Error::InvalidArgument("decode_step takes bfloat16 and float16");
}

EET_HANDLER(eet_decode_step, DecodeStepHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Attr<int64_t>("norm")
                .Attr<int64_t>("activation")
                .Attr<float>("eps")
                .Attr<float>("scale")
                .Attr<bool>("gated")
                .Attr<bool>("pooled")
                .Attr<int64_t>("wait_limit")
                .RemainingArgs()
                .RemainingRets());

}  // namespace eet

#endif
