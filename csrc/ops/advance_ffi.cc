// Handler of eet_advance, for CUDA alone: elsewhere the op is composed of others.
#ifdef EET_CUDA

#include "core/operands.h"
#include "ops/advance.h"

namespace eet {

// The last operands are updated in place. They are the results behind the first three.
constexpr const char* kUpdated[] = {"seen",   "generated", "done",   "lengths",
                                    "tokens", "logprobs",  "active", "x"};
constexpr size_t kFirstUpdated = 3;

static ffi::Error CheckUpdated(const ffi::RemainingArgs& args, const ffi::RemainingRets& results) {
  size_t operand = args.size() - std::size(kUpdated), result = kFirstUpdated;
  for (const char* name : kUpdated) {
    auto updated = *results.get<ffi::AnyBuffer>(result++);
    const ffi::Error error = CheckInPlace(name, *args.get<ffi::AnyBuffer>(operand++), updated);
    if (error.failure()) return error;
  }
  return ffi::Error::Success();
}

// Reads logits and the options of the draw.
static SampleArgs ReadSample(Operands& operands) {
  SampleArgs sample{};
  const ffi::AnyBuffer logits = operands.Next();
  sample.logits = Data<float>(logits);
  sample.rows = logits.dimensions()[0];
  sample.vocab = logits.dimensions()[1];
  sample.keys = operands.Next<uint32_t>();
  sample.temperature = operands.Next<float>();
  sample.top_k = operands.Next<int32_t>();
  sample.top_p = operands.Next<float>();
  sample.min_p = operands.Next<float>();
  sample.repetition_penalty = operands.Next<float>();
  return sample;
}

// Reads embedding table and position table.
template <typename T>
static EmbeddingArgs<T> ReadEmbedding(Operands& operands, float scale) {
  EmbeddingArgs<T> embedding{};
  const ffi::AnyBuffer table = operands.Next(), positions = operands.Next();
  embedding.table = Data<T>(table);
  embedding.vocab = table.dimensions()[0];
  embedding.hidden = table.dimensions()[1];
  embedding.position_table = OptionalData<T>(positions);
  embedding.max_positions = positions.dimensions()[0];
  embedding.scale = scale;
  return embedding;
}

// Operands: logits, options of the draw, step, page table, max_new_tokens, eos, embedding table,
// position table, inverse frequencies, and what is updated. Results: rows, positions, rotary table,
// and what is updated.
static ffi::Error AdvanceHandler(Stream stream, int64_t page_size, int64_t max_length,
                                 float embedding_scale, float rotary_scale, ffi::RemainingArgs args,
                                 ffi::RemainingRets results) {
  if (ffi::Error error = CheckUpdated(args, results); error.failure()) return error;
  const auto run = [&]<typename T>(std::type_identity<T>) {
    Operands operands(args);
    AdvanceArgs<T> advance{};
    advance.sample = ReadSample(operands);
    advance.step = operands.Next<int32_t>();
    const ffi::AnyBuffer page_table = operands.Next();
    advance.page_table = Data<int32_t>(page_table);
    advance.max_pages = page_table.dimensions()[1];
    advance.max_new_tokens = operands.Next<int32_t>();
    const ffi::AnyBuffer eos = operands.Next();
    advance.eos = Data<int32_t>(eos);
    advance.num_eos = int64_t(eos.element_count());
    advance.embedding = ReadEmbedding<T>(operands, embedding_scale);
    const ffi::AnyBuffer frequencies = operands.Next();
    advance.inverse_frequencies = Data<float>(frequencies);
    advance.pairs = int64_t(frequencies.element_count());

    advance.rows = ResultData<int32_t>(results, 0);
    advance.positions = ResultData<int32_t>(results, 1);
    advance.rotary_table = ResultData<float>(results, 2);
    size_t updated = kFirstUpdated;
    advance.seen = ResultData<uint8_t>(results, updated++);
    advance.generated = ResultData<int32_t>(results, updated++);
    advance.done = ResultData<bool>(results, updated++);
    advance.lengths = ResultData<int32_t>(results, updated++);
    advance.sample.seen = advance.seen;
    advance.sample.positions = advance.lengths;
    advance.steps = (*results.get<ffi::AnyBuffer>(updated))->dimensions()[0];
    advance.sample.tokens = ResultData<int32_t>(results, updated++);
    advance.sample.logprobs = ResultData<float>(results, updated++);
    advance.active = ResultData<bool>(results, updated++);
    advance.embedding.y = ResultData<T>(results, updated);

    advance.page_size = page_size;
    advance.max_length = max_length;
    advance.rotary_scale = rotary_scale;
    Advance(stream, advance);
    return LaunchStatus();
  };
  return DispatchFloat(args.get<ffi::AnyBuffer>(args.size() - 1)->element_type(), run);
}

EET_HANDLER(eet_advance, AdvanceHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Attr<int64_t>("page_size")
                .Attr<int64_t>("max_length")
                .Attr<float>("embedding_scale")
                .Attr<float>("rotary_scale")
                .RemainingArgs()
                .RemainingRets());

}  // namespace eet

#endif
