// Handler of eet_sample.
#include "core/ffi.h"
#include "ops/sample.h"

namespace eet {

static ffi::Error SampleHandler(Stream stream, ffi::AnyBuffer logits, ffi::AnyBuffer keys,
                                ffi::AnyBuffer positions, ffi::AnyBuffer temperature,
                                ffi::AnyBuffer top_k, ffi::AnyBuffer top_p, ffi::AnyBuffer min_p,
                                ffi::AnyBuffer repetition_penalty, ffi::AnyBuffer seen,
                                ffi::Result<ffi::AnyBuffer> tokens,
                                ffi::Result<ffi::AnyBuffer> logprobs) {
  Sample(stream, SampleArgs{.logits = Data<float>(logits),
                            .keys = Data<uint32_t>(keys),
                            .positions = Data<int32_t>(positions),
                            .temperature = Data<float>(temperature),
                            .top_k = Data<int32_t>(top_k),
                            .top_p = Data<float>(top_p),
                            .min_p = Data<float>(min_p),
                            .repetition_penalty = Data<float>(repetition_penalty),
                            .seen = OptionalData<uint8_t>(seen),
                            .tokens = Data<int32_t>(tokens),
                            .logprobs = Data<float>(logprobs),
                            .rows = logits.dimensions()[0],
                            .vocab = logits.dimensions()[1]});
  return LaunchStatus();
}

EET_HANDLER(eet_sample, SampleHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // logits
                .Arg<ffi::AnyBuffer>()  // keys
                .Arg<ffi::AnyBuffer>()  // positions
                .Arg<ffi::AnyBuffer>()  // temperature
                .Arg<ffi::AnyBuffer>()  // top_k
                .Arg<ffi::AnyBuffer>()  // top_p
                .Arg<ffi::AnyBuffer>()  // min_p
                .Arg<ffi::AnyBuffer>()  // repetition_penalty
                .Arg<ffi::AnyBuffer>()  // seen
                .Ret<ffi::AnyBuffer>()  // tokens
                .Ret<ffi::AnyBuffer>()  // logprobs
);

}  // namespace eet
