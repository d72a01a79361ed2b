// The one inner loop of matrix products and of attention: a few rows against a panel of 32 columns.
//
// A panel stores its columns in groups of four bytes (four int8 or two bfloat16 along the summed dimension):
//     panel[group][column 0..31][4 bytes]
// so that two vector loads bring one group of all columns, and one broadcast brings the same group of a row.
#pragma once

#include "simd.h"

namespace autoglm {

constexpr int kPanelVectors = 2;
constexpr int kPanelColumns = kPanelVectors * kLanes;
constexpr int kGroupBytes = 4;
constexpr int kPanelGroupBytes = kPanelColumns * kGroupBytes;
constexpr int kMaxBlockRows = 12;  // 24 sums, two columns and one row fill 27 of the 32 vector registers

// `stride` is in bytes: between rows, or between the groups of a panel.
struct Strided {
  const void* data;
  ptrdiff_t stride;
};

// Fetches a range of memory while something else is computed, a cache line a call.
struct Prefetch {
  const char* next = nullptr;
  const char* end = nullptr;
  AUTOGLM_INLINE void step() {
    if (next < end) {
      __builtin_prefetch(next, 0, 2);
      next += 64;
    }
  }
};

template <class Dot, int kRows>
AUTOGLM_INLINE void add_products(typename Dot::Sum (&sums)[kRows][kPanelVectors], Strided rows, Strided panel, int groups) {
  const char* row = static_cast<const char*>(rows.data);
  const char* column = static_cast<const char*>(panel.data);
  for (int group = 0; group < groups; ++group, column += panel.stride, row += kGroupBytes) {
    const Ints first = load<Ints>(column), second = load<Ints>(column + sizeof(Ints));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Ints value = broadcast_group(row + r * rows.stride);
      sums[r][0] = Dot::add(sums[r][0], first, value);
      sums[r][1] = Dot::add(sums[r][1], second, value);
    }
  }
}

// Calls visit(first row, integral constant of the number of rows) so that blocks are as equal as they can be.
template <int kRows = kMaxBlockRows, class Visit>
AUTOGLM_INLINE void dispatch_rows(int rows, int first, Visit&& visit) {
  if (rows == kRows) return visit(first, std::integral_constant<int, kRows>{});
  if constexpr (kRows > 1) dispatch_rows<kRows - 1>(rows, first, visit);
}

template <class Visit>
void for_row_blocks(int rows, Visit&& visit) {
  const int blocks = (rows + kMaxBlockRows - 1) / kMaxBlockRows;
  for (int block = 0; block < blocks; ++block) {
    const int first = rows * block / blocks, last = rows * (block + 1) / blocks;
    dispatch_rows(last - first, first, visit);
  }
}

}  // namespace autoglm
