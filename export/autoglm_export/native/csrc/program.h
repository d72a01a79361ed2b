// The program that the exporter records: a header and a flat list of operations, all int64, little endian.
// `native/lowering.py` writes exactly these structures; weights are byte offsets into weights.bin, -1 for none.
#pragma once

#include <cstdint>

namespace autoglm {

constexpr int64_t kTextFormat = 3;   // its header ends before `rope_sections`
constexpr int64_t kImageFormat = 4;  // of a decoder that takes images
constexpr int64_t kNone = -1;

struct ProgramHeader {
  int64_t format;
  int64_t num_operations;
  int64_t num_layers, num_heads, num_kv_heads, head_size;
  int64_t rope_dims;         // of each head, rotated as pairs (i, i + rope_dims / 2)
  int64_t rope_frequencies;  // float64 [rope_dims / 2], radians a position
  int64_t norm_epsilon;      // the bits of a float64
  int64_t quantised_width;   // of the widest input of a matrix product
  int64_t widths[5];         // floats a row of each buffer, in the order of `Buffer`
  int64_t rope_sections[3];  // pairs that turn by a token's time, then by its row, by its column: rope_dims / 2 together
};

enum class Buffer : int64_t {
  kResidual = 0,
  kProjected = 1,  // query, key and value side by side; or a block's output that is normed before it is added
  kAttended = 2,
  kHidden = 3,     // silu(gate) * up
  kLogits = 4,
};
constexpr int kNumBuffers = 5;
constexpr int kNumSections = 3;

enum class Code : int64_t {
  kEmbed = 0,         // target = columns `token id` of the packed matrix (weight, scales, inputs), or rows of features
  kNormQuantise = 1,  // quantised rows = rms_norm(source) * weight (- bias), mixed; `inputs` values a row
  kQuantise = 2,      // quantised rows = source (- bias), mixed; `inputs` values a row
  kLinear = 3,        // target (by `epilogue`) = quantised rows * packed matrix (+ bias)
  kAddNorm = 4,       // target += rms_norm(source) * weight; `inputs` values a row
  kAppend = 5,        // norm and rotate queries and keys of source, append keys and values to the cache of a layer;
                      // weight, scales: norms of query and key heads
  kAttend = 6,        // target = attention of those queries in that layer
  kSelect = 7,        // keep only the rows of target whose logits are wanted
  kAddFeatures = 8,   // target += part `detail` of the features of images' tokens
};

struct Operation {
  Code code;
  int64_t selected;  // 1: works on the selected rows, 0: on all tokens of the step
  Buffer source, target;
  int64_t inputs, columns;  // of a packed matrix: padded; of a norm, or kQuantise: `inputs` is the true number of values
  int64_t weight, scales, bias;
  int64_t detail;  // kLinear: epilogue; kAppend, kAttend: layer; kQuantise, kNormQuantise: vectors in a mixed block;
                   // kAddFeatures: a part of 1 ... as many as there are of these operations; part 0 is embedded
};

}  // namespace autoglm
