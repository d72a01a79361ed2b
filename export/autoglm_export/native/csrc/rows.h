// What happens to one row (one token) outside matrix products: RMS norm, quantisation, embedding, rotation.
#pragma once

#include <algorithm>
#include <cmath>

#include "panel.h"

namespace autoglm {

// A row of int8 values that stand for value * scale. Weights are stored with 128 added (the instruction wants one side
// unsigned), so every sum of products is too large by 128 times the sum of the row: `offset` takes it back.
struct QuantisedRow {
  RowValue* values;
  float* scale;
  int32_t* offset;
};

constexpr int kWeightZero = 128;
constexpr float kLargestByte = 127.0f;

// Infinite or NaN where a value of the row is: magnitudes compare as the integers of their bits, and NaN is the largest.
AUTOGLM_INLINE float largest_magnitude(const float* row, int width) {
  Ints largest{};
  for (int i = 0; i < width; i += kLanes) {
    const Ints bits = (Ints)absolute(load<Floats>(row + i));
    largest = bits > largest ? bits : largest;
  }
  int32_t lane[kLanes], most = 0;
  store(lane, largest);
  for (int32_t each : lane) most = each > most ? each : most;
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

// Of queries, keys and values: products of these, summed up over a head, stay far from the end of float32, so that attention
// meets no score that is not finite. No model comes near.
constexpr float kLargestOfHead = 1e17f;

inline bool is_computable(const float* values, int count) {
  const int whole = count / kLanes * kLanes;
  bool rest = true;
  for (int i = whole; i < count; ++i) rest &= std::fabs(values[i]) <= kLargestOfHead;
  return rest && largest_magnitude(values, whole) <= kLargestOfHead;
}

// Rows have a padded width, a multiple of the panel's; the padding is zero. A row that is not finite gets a scale that is not.
inline void quantise(const float* row, int width, QuantisedRow out) {
  const float largest = largest_magnitude(row, width);
  const float inverse = largest > 0.0f ? kLargestByte / largest : 0.0f;
  Words sum{};  // unsigned, because the integers of a row that is not finite may overflow
  for (int i = 0; i < width; i += kLanes) {
    const Ints value = __builtin_convertvector(round_to_integer(load<Floats>(row + i) * inverse), Ints);
    store_row_values(out.values + i, __builtin_convertvector(value, Bytes));
    sum += (Words)value;
  }
  *out.scale = largest / kLargestByte;
  *out.offset = static_cast<int32_t>(sum_lanes(sum) * -uint32_t{kWeightZero});
}

// `row` becomes what `quantised` leaves over of it, and that is quantised too.
inline void quantise_remainder(float* row, int width, QuantisedRow quantised, QuantisedRow out) {
  for (int i = 0; i < width; i += kLanes) {
    const Ints value = load_row_values(quantised.values + i);
    store(row + i, load<Floats>(row + i) - __builtin_convertvector(value, Floats) * *quantised.scale);
  }
  quantise(row, width, out);
}

inline void add(float* row, const float* more, int width) {
  for (int i = 0; i < width; i += kLanes) store(row + i, load<Floats>(row + i) + load<Floats>(more + i));
}

inline void subtract(float* row, const float* shift, int width) {
  for (int i = 0; i < width; i += kLanes) store(row + i, load<Floats>(row + i) - load<Floats>(shift + i));
}

// Spread outliers, so that one scale serves the whole row: every `block` neighbouring vectors are multiplied, lane by lane,
// by a Hadamard matrix. The exporter has multiplied the weights that read the row by its inverse.
inline void mix(float* row, int width, int block) {
  for (float* first = row; first < row + width; first += block * kLanes)
    for (int half = kLanes; half < block * kLanes; half *= 2)
      for (int i = 0; i < block * kLanes; i += kLanes) {
        if (i & half) continue;
        const Floats a = load<Floats>(first + i), b = load<Floats>(first + i + half);
        store(first + i, a + b);
        store(first + i + half, a - b);
      }
}

// 1 / sqrt(mean of squares + epsilon) over `size` values in a row of padded width; NaN where the squares overflow, since 0
// would make a row like any other of it.
inline float inverse_rms(const float* row, int width, int size, float epsilon) {
  Floats even{}, odd{};
  for (int i = 0; i < width; i += 2 * kLanes) {
    const Floats a = load<Floats>(row + i), b = load<Floats>(row + i + kLanes);
    even += a * a;
    odd += b * b;
  }
  const float sum = sum_lanes(even + odd);
  return 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon) + sum * 0.0f;
}

inline void rms_norm(const float* row, const float* weight, int width, int size, float epsilon, float* out) {
  const float factor = inverse_rms(row, width, size, epsilon);
  for (int i = 0; i < width; i += kLanes) store(out + i, load<Floats>(row + i) * factor * load<Floats>(weight + i));
}

inline void add_rms_norm(const float* row, const float* weight, int width, int size, float epsilon, float* residual) {
  const float factor = inverse_rms(row, width, size, epsilon);
  for (int i = 0; i < width; i += kLanes)
    store(residual + i, load<Floats>(residual + i) + load<Floats>(row + i) * factor * load<Floats>(weight + i));
}

// One column of a packed matrix: the embedding of a token is its column of the output matrix.
inline void unpack_column(const uint8_t* panels, const float* scales, int width, int64_t column, float* out) {
  const uint8_t* source = panels + (column / kPanelColumns) * static_cast<int64_t>(width) * kPanelColumns +
                          (column % kPanelColumns) * kGroupBytes;
  const float scale = scales[column];
  for (int i = 0; i < width; i += kGroupBytes, source += kPanelGroupBytes)
    for (int byte = 0; byte < kGroupBytes; ++byte) out[i + byte] = static_cast<float>(source[byte] - kWeightZero) * scale;
}

// Rotate the pairs (i, i + half) of a head; the exporter orders the dimensions of interleaved ropes this way too.
inline void rotate(float* __restrict head, const float* __restrict cosines, const float* __restrict sines, int half) {
  for (int i = 0; i < half; ++i) {
    const float x = head[i], y = head[i + half];
    head[i] = x * cosines[i] - y * sines[i];
    head[i + half] = y * cosines[i] + x * sines[i];
  }
}

// A head is normed on its own; its size need not be a multiple of a vector.
inline void norm_head(float* head, const float* weight, int size, float epsilon) {
  float lanes[kLanes] = {};
  for (int i = 0; i < size; ++i) lanes[i % kLanes] += head[i] * head[i];
  const float sum = sum_lanes(load<Floats>(lanes));
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon) + sum * 0.0f;
  for (int i = 0; i < size; ++i) head[i] = head[i] * factor * weight[i];
}

}  // namespace autoglm
