// What the engine calls, through ctypes. The caller has checked every range; nothing here throws past these functions.
#include "decoder.h"

#include <system_error>

using autoglm::Decoder;

#pragma GCC visibility push(default)
extern "C" {

// Null when memory is short, or the system refuses a thread, which `lacks_threads` says then. `program` and `weights`
// outlive the decoder; `weights` is aligned to 64 bytes.
Decoder* autoglm_create(const int64_t* program, const uint8_t* weights, const autoglm::Settings* settings,
                        int32_t* lacks_threads) {
  *lacks_threads = 0;
  try {
    return new Decoder(program, weights, *settings);
  } catch (const std::system_error&) {
    *lacks_threads = 1;
  } catch (const std::exception&) {
  }
  return nullptr;
}

void autoglm_destroy(Decoder* decoder) { delete decoder; }

void autoglm_forward(Decoder* decoder, const autoglm::Span* spans, int32_t num_spans, const int32_t* token_ids) {
  decoder->forward(spans, num_spans, {token_ids, nullptr, nullptr});
}

// Of a program that takes images. `positions`: [tokens][3], of time, row and column, each below max_length. `features`:
// [token ids below 0][parts][hidden size padded to 32], zeros in the padding.
void autoglm_forward_images(Decoder* decoder, const autoglm::Span* spans, int32_t num_spans, const int32_t* token_ids,
                            const int32_t* positions, const float* features) {
  decoder->forward(spans, num_spans, {token_ids, positions, features});
}

// [num_slots * max_logits_per_span, vocabulary padded to 32] float32; rows are filled in the order of the tokens whose
// logits are wanted.
const float* autoglm_logits(const Decoder* decoder) { return decoder->logits(); }

void autoglm_copy_prefix(Decoder* decoder, int32_t source, int32_t target, int32_t length) {
  decoder->copy_prefix(source, target, length);
}

}
#pragma GCC visibility pop
