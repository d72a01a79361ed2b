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
constexpr int kPanelNatives = kPanelGroupBytes / kNativeBytes;
#if defined(__AVX512F__)
constexpr int kMaxBlockRows = 12;  // 24 sums, two columns and one row fill 27 of the 32 vector registers
#else
constexpr int kMaxBlockRows = 4;  // 8 sums, two columns and one row, all in halves, fill 14 of the 16 vector registers
#endif

// How many of a panel's native vectors go beside each other: as many as leave their sums in registers.
constexpr int strip_natives(int rows) {
  const int most = kMaxBlockRows * 2 / rows;
  return most >= kPanelNatives ? kPanelNatives : most >= 4 ? 4 : 2;
}

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

// The sums are copied so that they live in registers: every loop over them here is unrolled, which the caller's need not be.
template <class Dot, bool kFetchAhead, int kRows>
AUTOGLM_INLINE void add_strip(char* sums, const RowBlock& rows, const Panel& panel, int groups, int first) {
  constexpr int kNatives = strip_natives(kRows);
  using Sum = typename Dot::Sum;
  const char* row = static_cast<const char*>(rows.data);
  const char* column = static_cast<const char*>(panel.data) + first * kNativeBytes;
  Sum local[kRows][kNatives];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kNatives; ++i) local[r][i] = load<Sum>(sums + r * kPanelGroupBytes + (first + i) * kNativeBytes);
  for (int group = 0; group < groups; ++group, column += panel.stride, row += Dot::kRowGroupBytes) {
    typename Dot::Columns columns[kNatives];
#pragma GCC unroll 8
    for (int i = 0; i < kNatives; ++i) columns[i] = Dot::columns(column + i * kNativeBytes);
    if constexpr (kFetchAhead) {
      __builtin_prefetch(column + panel.ahead, 0, 2);
      __builtin_prefetch(column + panel.ahead + kPanelGroupBytes / 2, 0, 2);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const auto value = Dot::row(row + r * rows.stride);
#pragma GCC unroll 8
      for (int i = 0; i < kNatives; ++i) local[r][i] = Dot::add(local[r][i], columns[i], value);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kNatives; ++i) store(sums + r * kPanelGroupBytes + (first + i) * kNativeBytes, local[r][i]);
}

// `sums` += rows * panel; 32 sums a row.
template <class Dot, bool kFetchAhead, int kRows, class Sums>
AUTOGLM_INLINE void add_products(Sums (&sums)[kRows][kPanelVectors], const RowBlock& rows, const Panel& panel, int groups) {
  char* first = reinterpret_cast<char*>(sums);
  add_strip<Dot, kFetchAhead, kRows>(first, rows, panel, groups, 0);
  for (int i = strip_natives(kRows); i < kPanelNatives; i += strip_natives(kRows))
    add_strip<Dot, false, kRows>(first, rows, panel, groups, i);
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
