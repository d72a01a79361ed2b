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
  RowValue* values;  // [rows][stride]
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

// What quantisation left over of the rows `owners`, quantised once more: together they carry 15 bits.
struct Remainders {
  QuantisedRows rows;
  const int* owners;  // [count], rising
  int count;
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
  add_products<DotBytes, kFetchAhead>(sums, {rows.row(first_row).values, ptrdiff_t(rows.stride * sizeof(RowValue))},
                                      {matrix.panel(panel), kPanelGroupBytes, matrix.panel_bytes()},
                                      matrix.inputs / kGroupBytes);
}

// Vectors of a panel's columns: what belongs to its two halves.
struct PanelFloats {
  Floats half[kPanelVectors];
};

AUTOGLM_INLINE PanelFloats load_panel(const float* columns, int panel) {
  if (!columns) return {};
  return {load<Floats>(columns + panel * kPanelColumns), load<Floats>(columns + panel * kPanelColumns + kLanes)};
}

AUTOGLM_INLINE PanelFloats products(const Ints (&sums)[kPanelVectors], float row_scale, const PanelFloats& scales,
                                    const PanelFloats& added) {
  return {__builtin_convertvector(sums[0], Floats) * row_scale * scales.half[0] + added.half[0],
          __builtin_convertvector(sums[1], Floats) * row_scale * scales.half[1] + added.half[1]};
}

template <Epilogue kEpilogue>
void finish_block(const BlockSums& sums, const QuantisedRows& rows, int first_row, int num_rows, const PackedMatrix& matrix,
                  int panel, FloatRows out) {
  const PanelFloats scales = load_panel(matrix.scales, panel), bias = load_panel(matrix.bias, panel);
  for (int r = 0; r < num_rows; ++r) {
    const PanelFloats sum = products(sums.values[r], rows.scales[first_row + r], scales, bias);
    finish<kEpilogue>(sum.half[0], sum.half[1], out.row(first_row + r), panel);
  }
}

// A sum that is stored or added takes the remainder's product as it comes; one that goes through silu is made anew.
template <Epilogue kEpilogue>
void finish_remainder(const Remainders& remainders, int index, const QuantisedRows& rows, const PackedMatrix& matrix,
                      int panel, FloatRows out) {
  const int owner = remainders.owners[index];
  const PanelFloats scales = load_panel(matrix.scales, panel);
  BlockSums sums;
  PanelFloats sum{};
  if constexpr (kEpilogue == Epilogue::kSwiglu) {
    sum_block<false, 1>(rows, owner, matrix, panel, sums);
    sum = products(sums.values[0], rows.scales[owner], scales, load_panel(matrix.bias, panel));
  }
  sum_block<false, 1>(remainders.rows, index, matrix, panel, sums);
  sum = products(sums.values[0], remainders.rows.scales[index], scales, sum);
  finish<kEpilogue == Epilogue::kSwiglu ? kEpilogue : Epilogue::kAdd>(sum.half[0], sum.half[1], out.row(owner), panel);
}

// All rows against panels [first, last): a panel stays in the core's own cache while the blocks of rows pass by.
template <Epilogue kEpilogue>
void multiply_panels(const QuantisedRows& rows, int num_rows, const Remainders& remainders, const PackedMatrix& matrix,
                     int first, int last, FloatRows out) {
  BlockSums sums;
  for (int panel = first; panel < last; ++panel) {
    for_row_blocks(num_rows, [&](int row, auto count) {
      constexpr int kRows = decltype(count)::value;
      // Few rows leave the loop waiting for memory, where the processor's own prefetching does best.
      const bool fetch_ahead = kRows >= kRowsToFetchAhead && row + kRows == num_rows;
      (fetch_ahead ? sum_block<true, kRows> : sum_block<false, kRows>)(rows, row, matrix, panel, sums);
      finish_block<kEpilogue>(sums, rows, row, kRows, matrix, panel, out);
    });
    for (int i = 0; i < remainders.count; ++i) finish_remainder<kEpilogue>(remainders, i, rows, matrix, panel, out);
  }
}

template <class... Arguments>
void multiply(Epilogue epilogue, const Arguments&... arguments) {
  switch (epilogue) {
    case Epilogue::kStore: return multiply_panels<Epilogue::kStore>(arguments...);
    case Epilogue::kAdd: return multiply_panels<Epilogue::kAdd>(arguments...);
    case Epilogue::kSwiglu: return multiply_panels<Epilogue::kSwiglu>(arguments...);
  }
}

}  // namespace autoglm
