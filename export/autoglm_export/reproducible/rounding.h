// Rounds weights one input after the other, the last one first, each after the errors of those behind it are added.
#pragma once

#include "products.h"

namespace autoglm {

// Of one group of inputs [first, first + size): how much of the error of input j is added to input i < j before that is
// rounded. Rounded to 12 bits, as are the errors, so that the products are exact.
class Feedback {
 public:
  // `matrix` [size, size]: entry (j, i), j > i.
  Feedback(const float* matrix, int64_t size) : size_(size), packed_(size_t(num_blocks(size, kTileRows)) * kTileRows * size * sizeof(float)) {
    for (int64_t j = 0; j < size; ++j)
      for (int64_t i = 0; i < j; ++i)
        block(i / kTileRows)[j * kTileRows + i % kTileRows] = round_to_12_bits(matrix[j * size + i]);
  }

  int64_t size() const { return size_; }
  // [j][kTileRows] of the inputs i from tile * kTileRows on.
  float* block(int64_t tile) const { return packed_.as<float>() + tile * kTileRows * size_; }

 private:
  const int64_t size_;
  Memory packed_;
};

struct Rounding {
  const float* weights;       // [columns, inputs]
  const float* scales;        // [scale rows, padded columns]: the step of each column, above 0
  const int32_t* scale_rows;  // [inputs]: which row of `scales` is an input's
  int64_t columns, inputs;
  float limit;     // the largest magnitude, in steps
  int8_t* values;  // [columns, inputs]

  int64_t padded_columns() const { return num_blocks(columns, kTileColumns) * kTileColumns; }
  const float* scale(int64_t input, int64_t column) const { return scales + scale_rows[input] * padded_columns() + column; }
};

AUTOGLM_INLINE NativeFloats to_whole_steps(NativeFloats value, float limit) {
  constexpr float kShifter = 12582912.0f;  // see round_to_integer
  const NativeFloats high = NativeFloats{} + limit;
  value = value > high ? high : value;
  value = value < -high ? -high : value;
  return (value + kShifter) - kShifter;
}

// Columns [column, column + kTileColumns) of a group of inputs that begins at `first`.
class ColumnTile {
 public:
  ColumnTile(const Rounding& rounding, int64_t largest_group)
      : rounding_(rounding), weights_(size_t(largest_group + kTileRows) * kTileColumns), wanted_(weights_.size()),
        errors_(weights_.size()) {}

  void round(const Feedback& feedback, int64_t first, int64_t column) {
    const int64_t size = feedback.size();
    load_weights(first, size, column);
    for (int64_t tile = num_blocks(size, kTileRows) - 1; tile >= 0; --tile) {
      const int64_t start = tile * kTileRows, end = std::min(start + kTileRows, size);
      add_errors_behind(feedback, tile, end);
      for (int64_t i = end - 1; i >= start; --i) round_input(feedback.block(tile), i, start, first, column);
    }
  }

 private:
  int64_t width(int64_t column) const { return std::min<int64_t>(kTileColumns, rounding_.columns - column); }

  void load_weights(int64_t first, int64_t size, int64_t column) {
    constexpr int64_t kBlock = 16;
    if (width(column) < kTileColumns) std::fill(weights_.begin(), weights_.end(), 0.0f);
    for (int64_t start = 0; start < size; start += kBlock)
      for (int64_t c = 0; c < width(column); ++c)
        for (int64_t i = start; i < std::min(start + kBlock, size); ++i)
          weights_[i * kTileColumns + c] = rounding_.weights[(column + c) * rounding_.inputs + first + i];
    std::copy_n(weights_.begin(), (size + kTileRows) * kTileColumns, wanted_.begin());
  }

  // wanted += feedback of all inputs from `end` on, the last one first.
  void add_errors_behind(const Feedback& feedback, int64_t tile, int64_t end) {
    float* wanted = wanted_.data() + tile * kTileRows * kTileColumns;
    NativeFloats sums[kTileRows][2];
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r)
      sums[r][0] = load<NativeFloats>(wanted + r * kTileColumns),
      sums[r][1] = load<NativeFloats>(wanted + r * kTileColumns + kNativeLanes);
    const float* factors = feedback.block(tile);
    for (int64_t j = feedback.size() - 1; j >= end; --j) {
      const auto low = load<NativeFloats>(&errors_[j * kTileColumns]);
      const auto high = load<NativeFloats>(&errors_[j * kTileColumns + kNativeLanes]);
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const auto factor = broadcast_word<NativeFloats>(factors + j * kTileRows + r);
        sums[r][0] = add_exact_product(sums[r][0], low, factor);
        sums[r][1] = add_exact_product(sums[r][1], high, factor);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r)
      store(wanted + r * kTileColumns, sums[r][0]), store(wanted + r * kTileColumns + kNativeLanes, sums[r][1]);
  }

  // Rounds input `i`, and adds its error, told of the weight as it was, to those before it in its tile.
  void round_input(const float* factors, int64_t i, int64_t start, int64_t first, int64_t column) {
    float steps[kTileColumns];
    for (int half = 0; half < kTileColumns; half += kNativeLanes) {
      const auto scale = load<NativeFloats>(rounding_.scale(first + i, column + half));
      float* errors = &errors_[i * kTileColumns + half];
      const NativeFloats whole = to_whole_steps(load<NativeFloats>(&wanted_[i * kTileColumns + half]) / scale, rounding_.limit);
      store(steps + half, whole);
      store(errors, load<NativeFloats>(&weights_[i * kTileColumns + half]) - whole * scale);
      for (int lane = 0; lane < kNativeLanes; ++lane) errors[lane] = round_to_12_bits(errors[lane]);
      for (int64_t before = start; before < i; ++before) {
        float* wanted = &wanted_[before * kTileColumns + half];
        const auto factor = broadcast_word<NativeFloats>(factors + i * kTileRows + before - start);
        store(wanted, add_exact_product(load<NativeFloats>(wanted), load<NativeFloats>(errors), factor));
      }
    }
    for (int64_t c = 0; c < width(column); ++c)
      rounding_.values[(column + c) * rounding_.inputs + first + i] = int8_t(steps[c]);
  }

  const Rounding& rounding_;
  std::vector<float> weights_, wanted_, errors_;  // [inputs][kTileColumns]
};

}  // namespace autoglm
