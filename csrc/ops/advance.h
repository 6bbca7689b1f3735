// Everything between two steps of a decode loop. For each row, of which `length` tokens are in the
// cache:
//   token = sample(logits),  x = embedding(token, length),  rotary table at length
// and of a row that is not done
//   token is marked as seen and counted; the row is done where it ends the sequence or is the last
//   the cache gets the token, and length grows by one, where a page has room for it
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "ops/embedding.h"
#include "ops/sample.h"

namespace eet {

template <typename T>
struct AdvanceArgs {
  SampleArgs sample;           // positions are lengths; tokens and logprobs [steps, rows]
  EmbeddingArgs<T> embedding;  // without tokens and positions, which come about here
  const int32_t* step;         // [1], of tokens, logprobs and active
  bool* active;                // [steps, rows], whether the row was not done before
  // In place.
  uint8_t* seen;  // [rows, vocab], as in sample
  int32_t* generated;
  bool* done;
  int32_t* lengths;
  // When a row ends.
  const int32_t* max_new_tokens;  // [1]
  const int32_t* eos;             // [num_eos]
  // Where the token goes.
  const int32_t* page_table;  // [rows, max_pages], 0: no page
  int32_t* rows;              // [rows], the row, or -1 for a token that does not go to the cache
  int32_t* positions;         // [rows]
  const float* inverse_frequencies;  // [pairs]
  float* rotary_table;               // [rows, pairs, 2], cosine and sine
  int64_t steps, num_eos, max_pages, page_size, pairs;
  int64_t max_length;  // of a row, at most max_pages * page_size
  float rotary_scale;
};

template <typename T>
void Advance(Stream stream, const AdvanceArgs<T>& args);

}  // namespace eet
