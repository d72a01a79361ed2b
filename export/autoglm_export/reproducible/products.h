// Matrix products whose every bit is the same on any CPU, with any number of threads.
//
// Both sides are rounded to 12 significant bits, so that each product is exact in float32 and it makes no difference whether
// it is fused with the addition. Every sum runs over `k` in order, kSumBlock at a time:
//     ((sum of the first block) + sum of the second) + ...
#pragma once

#include <vector>

#include "../native/csrc/memory.h"
#include "../native/csrc/simd.h"
#include "parallel.h"

namespace autoglm {

constexpr int kSumBlock = 256;
constexpr int kNativeLanes = kNativeBytes / sizeof(float);
constexpr int kTileColumns = 2 * kNativeLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

// To the nearest value of 12 significant bits, ties to even. Values beyond the largest such float32 become infinite.
AUTOGLM_INLINE float round_to_12_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7ffu + ((bits >> 12) & 1u)) & 0xfffff000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A matrix that is read along `k`: element (i, k) lies at i * stride + k * k_stride.
struct Operand {
  const float* data;
  int64_t size, stride, k_stride;

  float at(int64_t i, int64_t k) const { return data[i * stride + k * k_stride]; }
};

// `width` rows of the operand from `first` on, rounded, as [k][width]; what lies beyond the operand is zero.
template <int kWidth>
void pack(const Operand& operand, int64_t first, int64_t first_k, int64_t num_k, float* out) {
  const int count = int(std::clamp<int64_t>(operand.size - first, 0, kWidth));
  if (count < kWidth) std::fill_n(out, num_k * kWidth, 0.0f);
  if (operand.stride == 1) {
    for (int64_t k = 0; k < num_k; ++k)
      for (int i = 0; i < count; ++i) out[k * kWidth + i] = round_to_12_bits(operand.at(first + i, first_k + k));
    return;
  }
  constexpr int kBlock = 16;  // of k: whole cache lines on both sides
  for (int64_t start = 0; start < num_k; start += kBlock)
    for (int i = 0; i < count; ++i)
      for (int64_t k = start; k < std::min(start + kBlock, num_k); ++k)
        out[k * kWidth + i] = round_to_12_bits(operand.at(first + i, first_k + k));
}

struct Tile {
  NativeFloats sums[kTileRows][2];
};

// sums += rows [k][kTileRows] x columns [k][kTileColumns], k by k.
AUTOGLM_INLINE void add_tile(Tile& tile, const float* rows, const float* columns, int64_t num_k) {
  NativeFloats sums[kTileRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) sums[r][0] = tile.sums[r][0], sums[r][1] = tile.sums[r][1];
  for (int64_t k = 0; k < num_k; ++k, rows += kTileRows, columns += kTileColumns) {
    const auto first = load<NativeFloats>(columns), second = load<NativeFloats>(columns + kNativeLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const NativeFloats value = broadcast_word<NativeFloats>(rows + r);
      sums[r][0] = add_exact_product(sums[r][0], first, value);
      sums[r][1] = add_exact_product(sums[r][1], second, value);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) tile.sums[r][0] = sums[r][0], tile.sums[r][1] = sums[r][1];
}

// out [rows.size, columns.size] = rows x columns over num_k; with `lower`, only tiles that reach the diagonal or below it.
inline void multiply(const Operand& rows, const Operand& columns, int64_t num_k, bool lower, int num_threads, float* out) {
  constexpr int64_t kTaskColumns = std::max(64, kTileColumns);
  const int64_t row_tiles = num_blocks(rows.size, kTileRows), k_blocks = num_blocks(num_k, kSumBlock);
  const Memory packed_rows(size_t(row_tiles) * kTileRows * num_k * sizeof(float), kHugePages);
  const auto packed_tile = [&](int64_t tile, int64_t first_k) {
    return packed_rows.as<float>() + (tile * num_k + first_k) * kTileRows;
  };
  for_tasks(row_tiles, num_threads, [&](int64_t tile) {
    pack<kTileRows>(rows, tile * kTileRows, 0, num_k, packed_tile(tile, 0));
  });
  for_tasks(num_blocks(columns.size, kTaskColumns), num_threads, [&](int64_t task) {
    std::vector<float> packed(size_t(kTaskColumns) * kSumBlock);
    const int64_t first_column = task * kTaskColumns, last_column = std::min(columns.size, first_column + kTaskColumns);
    for (int64_t block = 0; block < k_blocks; ++block) {
      const int64_t first_k = block * kSumBlock, count = std::min<int64_t>(kSumBlock, num_k - first_k);
      for (int64_t column = first_column; column < last_column; column += kTileColumns)
        pack<kTileColumns>(columns, column, first_k, count, packed.data() + (column - first_column) * kSumBlock);
      for (int64_t tile = lower ? first_column / kTileRows : 0; tile < row_tiles; ++tile)
        for (int64_t column = first_column; column < last_column; column += kTileColumns) {
          Tile sums{};
          add_tile(sums, packed_tile(tile, first_k), packed.data() + (column - first_column) * kSumBlock, count);
          const auto* values = reinterpret_cast<const float*>(&sums);
          const int64_t width = std::min<int64_t>(kTileColumns, columns.size - column);
          for (int64_t r = 0; r < std::min<int64_t>(kTileRows, rows.size - tile * kTileRows); ++r) {
            float* target = out + (tile * kTileRows + r) * columns.size + column;
            for (int64_t c = 0; c < width; ++c)
              target[c] = block ? target[c] + values[r * kTileColumns + c] : values[r * kTileColumns + c];
          }
        }
    }
  });
}

}  // namespace autoglm
