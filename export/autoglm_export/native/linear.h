// Matrix products of quantised rows with packed int8 weights, and what is done to a sum before it is stored.
#pragma once

#include "rows.h"

namespace autoglm {

// `inputs` and `columns` are padded to whole panels; padded columns have scale 0.
struct PackedMatrix {
  const uint8_t* panels;  // [columns / 32][inputs / 4][32][4], 128 added
  const float* scales;    // [columns]
  const float* bias;      // [columns], or null
  int inputs, columns;

  const uint8_t* panel(int index) const { return panels + static_cast<int64_t>(index) * panel_bytes(); }
  int64_t panel_bytes() const { return static_cast<int64_t>(inputs) * kPanelColumns; }
};

struct QuantisedRows {
  int8_t* values;  // [rows][stride]
  float* scales;
  int32_t* offsets;
  int stride;

  QuantisedRow row(int index) const { return {values + int64_t{index} * stride, scales + index, offsets + index}; }
};

struct FloatRows {
  float* values;
  int64_t stride;
  float* row(int64_t index) const { return values + index * stride; }
};

constexpr int kRowsToFetchAhead = 6;

enum class Epilogue : int64_t {
  kStore = 0,   // out = product
  kAdd = 1,     // out += product: the residual stream
  kSwiglu = 2,  // each panel holds 16 columns of gate, then the same 16 of up: out = silu(gate) * up
};

template <Epilogue kEpilogue>
AUTOGLM_INLINE void finish(Floats first, Floats second, float* row, int panel) {
  if constexpr (kEpilogue == Epilogue::kSwiglu) {
    store(row + panel * kLanes, silu(first) * second);
  } else {
    float* out = row + panel * kPanelColumns;
    if constexpr (kEpilogue == Epilogue::kAdd) {
      first += load<Floats>(out);
      second += load<Floats>(out + kLanes);
    }
    store(out, first);
    store(out + kLanes, second);
  }
}

struct BlockSums {
  Ints values[kMaxBlockRows][kPanelVectors];
};

template <bool kFetchAhead, int kRows>
__attribute__((noinline)) void sum_block(const QuantisedRows& rows, int first_row, const PackedMatrix& matrix, int panel,
                                         BlockSums& out) {
  auto& sums = reinterpret_cast<Ints(&)[kRows][kPanelVectors]>(out.values);
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Ints{} + rows.offsets[first_row + r];
  add_products<DotBytes, kFetchAhead>(sums, {rows.row(first_row).values, rows.stride},
                                      {matrix.panel(panel), kPanelGroupBytes, matrix.panel_bytes()},
                                      matrix.inputs / kGroupBytes);
}

template <Epilogue kEpilogue>
void finish_block(const BlockSums& sums, const QuantisedRows& rows, int first_row, int num_rows, const PackedMatrix& matrix,
                  int panel, FloatRows out) {
  const float* scales = matrix.scales + panel * kPanelColumns;
  const Floats scale0 = load<Floats>(scales), scale1 = load<Floats>(scales + kLanes);
  Floats bias0{}, bias1{};
  if (matrix.bias) {
    bias0 = load<Floats>(matrix.bias + panel * kPanelColumns);
    bias1 = load<Floats>(matrix.bias + panel * kPanelColumns + kLanes);
  }
  for (int r = 0; r < num_rows; ++r) {
    const float row_scale = rows.scales[first_row + r];
    finish<kEpilogue>(__builtin_convertvector(sums.values[r][0], Floats) * row_scale * scale0 + bias0,
                      __builtin_convertvector(sums.values[r][1], Floats) * row_scale * scale1 + bias1,
                      out.row(first_row + r), panel);
  }
}

// All rows against panels [first, last): a panel stays in the core's own cache while the blocks of rows pass by.
template <Epilogue kEpilogue>
void multiply_panels(const QuantisedRows& rows, int num_rows, const PackedMatrix& matrix, int first, int last, FloatRows out) {
  BlockSums sums;
  for (int panel = first; panel < last; ++panel)
    for_row_blocks(num_rows, [&](int row, auto count) {
      constexpr int kRows = decltype(count)::value;
      // Few rows leave the loop waiting for memory, where the processor's own prefetching does best.
      const bool fetch_ahead = kRows >= kRowsToFetchAhead && row + kRows == num_rows;
      (fetch_ahead ? sum_block<true, kRows> : sum_block<false, kRows>)(rows, row, matrix, panel, sums);
      finish_block<kEpilogue>(sums, rows, row, kRows, matrix, panel, out);
    });
}

inline void multiply(Epilogue epilogue, const QuantisedRows& rows, int num_rows, const PackedMatrix& matrix, int first,
                     int last, FloatRows out) {
  switch (epilogue) {
    case Epilogue::kStore: return multiply_panels<Epilogue::kStore>(rows, num_rows, matrix, first, last, out);
    case Epilogue::kAdd: return multiply_panels<Epilogue::kAdd>(rows, num_rows, matrix, first, last, out);
    case Epilogue::kSwiglu: return multiply_panels<Epilogue::kSwiglu>(rows, num_rows, matrix, first, last, out);
  }
}

}  // namespace autoglm
