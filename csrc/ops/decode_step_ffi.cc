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

// Reads attention weights, feed-forward weights, final norm and head.
template <typename T>
static void ReadStepWeights(Operands& operands, int64_t norm, float eps, DecodeStepArgs<T>& step) {
  step.attention_norm = StackedNorm<T>(operands, norm, eps);
  step.qkv_kernel = operands.Next<T>();
  step.qkv_bias = operands.Next<T>();
  step.q_norm = operands.Next<T>();
  step.k_norm = operands.Next<T>();
  const ffi::AnyBuffer o_kernel = operands.Next();
  step.o_kernel = Data<T>(o_kernel);
  step.sizes.layers = o_kernel.dimensions()[0];
  step.sizes.heads = o_kernel.dimensions()[2];  // times head_dim, which the cache tells
  step.o_bias = operands.Next<T>();
  step.mlp_norm = StackedNorm<T>(operands, norm, eps);
  step.up_kernel = operands.Next<T>();
  step.up_bias = operands.Next<T>();
  const ffi::AnyBuffer down_kernel = operands.Next();
  step.down_kernel = Data<T>(down_kernel);
  step.sizes.intermediate = down_kernel.dimensions()[2];
  step.down_bias = operands.Next<T>();
  step.final_norm = StackedNorm<T>(operands, norm, eps);
  const ffi::AnyBuffer head = operands.Next();
  step.head = Data<T>(head);
  step.sizes.vocab = head.dimensions()[0];
}

// Reads k, v, page table, rows, positions and rotary table.
template <typename T>
static void ReadStepCache(Operands& operands, const ffi::RemainingRets& results,
                          DecodeStepArgs<T>& step) {
  DecodeStepSizes& sizes = step.sizes;
  const ffi::AnyBuffer k = operands.Next();
  operands.Next();  // v, of the shape of k
  step.k = ResultData<T>(results, 1);
  step.v = ResultData<T>(results, 2);
  sizes.pages = k.dimensions()[1];
  sizes.kv_heads = k.dimensions()[2];
  sizes.page_size = k.dimensions()[3];
  sizes.head_dim = k.dimensions()[4];
  sizes.heads /= sizes.head_dim;
  const ffi::AnyBuffer page_table = operands.Next();
  step.page_table = Data<int32_t>(page_table);
  sizes.max_pages = page_table.dimensions()[1];
  const ffi::AnyBuffer rows = operands.Next();
  step.rows = Data<int32_t>(rows);
  sizes.batch = rows.element_count();
  step.positions = operands.Next<int32_t>();
  const ffi::AnyBuffer rotary = operands.Next();
  step.rotary_table = OptionalData<float>(rotary);
  sizes.rotary_dim = step.rotary_table ? 2 * rotary.dimensions()[1] : 0;
}

// k, v, workspace and status are results 1 to 4, in place.
static ffi::Error CheckStepState(const ffi::RemainingArgs& args, const ffi::RemainingRets& results,
                                 bool pooled) {
  // k, v, page table, rows, positions, rotary table, workspace, status.
  constexpr size_t kKeysFromEnd = 8;
  const size_t k = args.size() - kKeysFromEnd, workspace = args.size() - 2;
  size_t result = 1;
  for (const auto& [name, operand] :
       {std::pair("k", k), std::pair("v", k + 1), std::pair("workspace", workspace)}) {
    const ffi::Error error = CheckPiece(name, *args.get<ffi::AnyBuffer>(operand),
                                        *results.get<ffi::AnyBuffer>(result++), pooled);
    if (error.failure()) return error;
  }
  auto status = *results.get<ffi::AnyBuffer>(result);
  return CheckInPlace("status", *args.get<ffi::AnyBuffer>(args.size() - 1), status);
}

// Operands: x, attention weights, feed-forward weights, final norm, head, windows, cache and
// tokens, workspace, status. Results: logits, k, v, workspace, status; all but logits in place.
static ffi::Error DecodeStepHandler(Stream stream, int64_t norm, int64_t activation, float eps,
                                    float scale, int64_t window, bool gated, bool pooled,
                                    int64_t wait_limit, ffi::RemainingArgs args,
                                    ffi::RemainingRets results) {
  Operands operands(args);
  const ffi::AnyBuffer x = operands.Next();
  const auto run = [&]<typename T>(std::type_identity<T>) {
    DecodeStepArgs<T> step{};
    step.x = Data<T>(x);
    step.sizes.hidden = x.dimensions()[1];
    step.sizes.gated = gated;
    ReadStepWeights(operands, norm, eps, step);
    step.windows = operands.Next<int32_t>();
    step.window = int32_t(window);
    ReadStepCache(operands, results, step);
    if (ffi::Error error = CheckStepState(args, results, pooled); error.failure()) return error;
    const auto workspace = ReadWorkspace(operands, DecodeStepExchange(step.sizes).bytes());
    if (!workspace) return workspace.error();
    step.exchange = ResultData<void>(results, 3);
    step.logits = ResultData<float>(results, 0);
    step.status = ResultData<int32_t>(results, 4);
    step.activation = Activation(activation);
    step.scale = scale;
    step.wait_limit = 1000 * wait_limit;
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
                .Attr<int64_t>("window")
                .Attr<bool>("gated")
                .Attr<bool>("pooled")
                .Attr<int64_t>("wait_limit")
                .RemainingArgs()
                .RemainingRets());

}  // namespace eet

#endif
