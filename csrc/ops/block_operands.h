// From a handler's operands to the arguments of the blocks. Included by handlers only.
#pragma once

#include <string>

#include "core/operands.h"
#include "ops/decoder_layer.h"
#include "pool/slab.h"

namespace eet {

// Static options, named as in xla_ops.
struct BlockAttributes {
  explicit BlockAttributes(const ffi::Dictionary& attrs)
      : layer(*attrs.get<int64_t>("layer")),
        norm(*attrs.get<int64_t>("norm")),
        activation(*attrs.get<int64_t>("activation")),
        window(*attrs.get<int64_t>("window")),
        eps(*attrs.get<float>("eps")),
        scale(*attrs.get<float>("scale")),
        soft_cap(*attrs.get<float>("soft_cap")),
        gated(*attrs.get<bool>("gated")),
        decode(*attrs.get<bool>("decode")),
        parallel_residual(*attrs.get<bool>("parallel_residual")),
        pooled(*attrs.get<bool>("pooled")),
        consecutive(*attrs.get<bool>("consecutive")) {}

  LinearPath path() const { return decode ? LinearPath::kDecode : LinearPath::kPrefill; }

  int64_t layer, norm, activation, window;
  float eps, scale, soft_cap;
  bool gated, decode, parallel_residual;
  bool pooled;       // on the GPU, state must lie in the memory of a live pool
  bool consecutive;  // the layer before is in front, with the same weights and workspace
};

template <typename T>
NormWeights<T> ReadNorm(Operands& operands, const BlockAttributes& attrs) {
  NormWeights<T> norm{
      .kind = NormKind(attrs.norm), .scale = nullptr, .bias = nullptr, .eps = attrs.eps};
  norm.scale = operands.NextLayer<T>(attrs.layer);
  norm.bias = operands.NextLayer<T>(attrs.layer);
  return norm;
}

// Reads norm scale and bias, qkv kernel and bias, q and k norm, o kernel and bias.
template <typename T>
void ReadAttentionWeights(Operands& operands, const BlockAttributes& attrs,
                          AttentionBlockArgs<T>& args) {
  args.norm = ReadNorm<T>(operands, attrs);
  args.weights_are_ready = attrs.consecutive;
  args.qkv_kernel = operands.NextLayer<T>(attrs.layer);
  args.qkv_bias = operands.NextLayer<T>(attrs.layer);
  args.q_norm = operands.NextLayer<T>(attrs.layer);
  args.k_norm = operands.NextLayer<T>(attrs.layer);
  const ffi::AnyBuffer o_kernel = operands.Next();
  args.sizes.hidden = o_kernel.dimensions()[1];
  args.o_kernel =
      Data<T>(o_kernel) + attrs.layer * o_kernel.dimensions()[1] * o_kernel.dimensions()[2];
  args.sizes.heads = o_kernel.dimensions()[2];  // times head_dim, which the cache tells
  args.o_bias = operands.NextLayer<T>(attrs.layer);
}

// Reads k, v, page table, rows, positions, rotary table and ALiBi slopes.
template <typename T>
void ReadCacheAndTokens(Operands& operands, const BlockAttributes& attrs,
                        AttentionBlockArgs<T>& args) {
  const ffi::AnyBuffer k = operands.Next(), v = operands.Next(), page_table = operands.Next();
  AttentionSizes& sizes = args.sizes;
  sizes.pages = k.dimensions()[1];
  sizes.kv_heads = k.dimensions()[2];
  sizes.page_size = k.dimensions()[3];
  sizes.head_dim = k.dimensions()[4];
  sizes.heads /= sizes.head_dim;
  sizes.batch = page_table.dimensions()[0];
  sizes.max_pages = page_table.dimensions()[1];
  const int64_t offset =
      attrs.layer * sizes.pages * sizes.kv_heads * sizes.page_size * sizes.head_dim;
  args.k = const_cast<T*>(Data<T>(k)) + offset;  // aliased to the result
  args.v = const_cast<T*>(Data<T>(v)) + offset;
  args.page_table = Data<int32_t>(page_table);
  const ffi::AnyBuffer rows = operands.Next();
  sizes.tokens = rows.element_count();
  args.rows = Data<int32_t>(rows);
  args.positions = Data<int32_t>(operands.Next());
  const ffi::AnyBuffer rotary = operands.Next();
  sizes.rotary_dim = rotary.element_count() == 0 ? 0 : 2 * rotary.dimensions()[1];
  args.rotary_table = OptionalData<float>(rotary);
  args.alibi_slopes = operands.Next<float>();
  args.scale = attrs.scale;
  args.soft_cap = attrs.soft_cap;
  args.window = attrs.window;
  args.path = attrs.path();
}

// Reads norm scale and bias, up kernel and bias, down kernel and bias.
template <typename T>
void ReadMlpWeights(Operands& operands, const BlockAttributes& attrs, MlpBlockArgs<T>& args) {
  args.norm = ReadNorm<T>(operands, attrs);
  args.weights_are_ready = attrs.consecutive;
  args.up_kernel = operands.NextLayer<T>(attrs.layer);
  args.up_bias = operands.NextLayer<T>(attrs.layer);
  const ffi::AnyBuffer down_kernel = operands.Next();
  args.sizes.hidden = down_kernel.dimensions()[1];
  args.sizes.intermediate = down_kernel.dimensions()[2];
  args.sizes.gated = attrs.gated;
  args.down_kernel =
      Data<T>(down_kernel) + attrs.layer * args.sizes.hidden * args.sizes.intermediate;
  args.down_bias = operands.NextLayer<T>(attrs.layer);
  args.activation = Activation(attrs.activation);
  args.path = attrs.path();
}

// One piece of state: the result must be the operand's memory. Where XLA has copied the operand
// before the call, because nobody donated it, the two are equal all the same, but not in a pool.
inline ffi::Error CheckPiece(const char* name, const ffi::AnyBuffer& operand,
                             ffi::Result<ffi::AnyBuffer> result, bool pooled) {
  if (ffi::Error error = CheckInPlace(name, operand, result); error.failure()) return error;
#ifdef EET_CUDA
  if (pooled && !SlabContains(operand.untyped_data())) {
    return ffi::Error::InvalidArgument(std::string(name) +
                                       " was copied out of its pool: donate the state to jax.jit");
  }
#else
  (void)pooled;  // the CPU backend moves donated arrays into memory of its own
#endif
  return ffi::Error::Success();
}

// Checks the workspace, which is the last operand and the last result, and of blocks with a cache
// also k and v, which are results 1 and 2.
inline ffi::Error CheckState(const ffi::RemainingArgs& args, const ffi::RemainingRets& results,
                             const BlockAttributes& attrs) {
  constexpr size_t kKeysFromEnd = 8;  // k, v, page table, rows, positions, rotary, ALiBi, workspace
  const auto check = [&](const char* name, size_t operand, size_t result) {
    return CheckPiece(name, *args.get<ffi::AnyBuffer>(operand),
                      *results.get<ffi::AnyBuffer>(result), attrs.pooled);
  };
  if (results.size() == 4) {
    const size_t k = args.size() - kKeysFromEnd;
    if (ffi::Error error = check("k", k, 1); error.failure()) return error;
    if (ffi::Error error = check("v", k + 1, 2); error.failure()) return error;
  }
  return check("workspace", args.size() - 1, results.size() - 1);
}

// The last operand, if it is large enough.
inline ffi::ErrorOr<Workspace> ReadWorkspace(Operands& operands, int64_t needed) {
  const ffi::AnyBuffer buffer = operands.Next();
  const int64_t bytes = buffer.size_bytes();
  if (bytes < needed) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("workspace must have at least " +
                                                       std::to_string(needed) + " bytes, got " +
                                                       std::to_string(bytes)));
  }
  return Workspace(buffer.untyped_data());
}

}  // namespace eet
