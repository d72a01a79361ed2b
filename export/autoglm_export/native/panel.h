// The one inner loop of matrix products and of attention: a few rows against a panel of 32 columns.
//
// A panel stores its columns in groups of four bytes (four int8 or two bfloat16 along the summed dimension):
//     panel[group][column 0..31][4 bytes]
// so that two vector loads bring one group of all columns, and one broadcast brings the same group of a row.
#pragma once

#include <type_traits>

#include "simd.h"

namespace autoglm {

constexpr int kPanelVectors = 2;
constexpr int kPanelColumns = kPanelVectors * kLanes;
constexpr int kGroupBytes = 4;
constexpr int kPanelGroupBytes = kPanelColumns * kGroupBytes;
constexpr int kMaxBlockRows = 12;  // 24 sums, two columns and one row fill 27 of the 32 vector registers

// Strides are in bytes.
struct RowBlock {
  const void* data;
  ptrdiff_t stride;  // between rows
};

// While a panel is read, what lies `ahead` bytes further is fetched into the core's cache: the panel that comes next. The
// processor's own prefetching stops at pages and does not look far enough when many rows keep the loop busy.
struct Panel {
  const void* data;
  ptrdiff_t stride;  // between groups
  ptrdiff_t ahead;   // 0: nothing comes next
};

AUTOGLM_INLINE ptrdiff_t bytes_between(const void* from, const void* to) {
  return static_cast<const char*>(to) - static_cast<const char*>(from);
}

// `sums` += rows * panel. The sums are copied so that they live in registers: every loop over them here is unrolled, which
// the caller's need not be.
template <class Dot, bool kFetchAhead, int kRows>
AUTOGLM_INLINE void add_products(typename Dot::Sum (&sums)[kRows][kPanelVectors], const RowBlock& rows, const Panel& panel,
                                 int groups) {
  const char* row = static_cast<const char*>(rows.data);
  const char* column = static_cast<const char*>(panel.data);
  typename Dot::Sum local[kRows][kPanelVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) local[r][0] = sums[r][0], local[r][1] = sums[r][1];
  for (int group = 0; group < groups; ++group, column += panel.stride, row += kGroupBytes) {
    const Ints first = load<Ints>(column), second = load<Ints>(column + sizeof(Ints));
    if constexpr (kFetchAhead) {
      __builtin_prefetch(column + panel.ahead, 0, 2);
      __builtin_prefetch(column + panel.ahead + sizeof(Ints), 0, 2);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Ints value = broadcast_group(row + r * rows.stride);
      local[r][0] = Dot::add(local[r][0], first, value);
      local[r][1] = Dot::add(local[r][1], second, value);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) sums[r][0] = local[r][0], sums[r][1] = local[r][1];
}

// Calls visit(first row, integral constant of the number of rows), with blocks as equal as they can be.
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
