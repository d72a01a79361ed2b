// The factor of a positive definite matrix: G = L L^T. Its values are float32, so that every product is exact in float64, and
// each sum is taken in float64 over k = 0, 1, 2, ...: the same bits on any CPU, fused or not.
#pragma once

#include <cmath>
#include <vector>

#include "doubles.h"

namespace autoglm {

class Cholesky {
 public:
  // `matrix` [size, size]: the lower triangle is read.
  Cholesky(const float* matrix, int64_t size, int num_threads)
      : matrix_(matrix), size_(size), num_tiles_(num_blocks(size, kRows)), num_threads_(num_threads),
        factor_(size_t(num_tiles_) * size * kRows * sizeof(float), kHugePages) {
    for (int64_t k = 0; k < size_ && is_positive_; k += kBlock) add_block(k, std::min(kBlock, size_ - k));
  }

  // L[row][column], for row >= column. Meaningless unless `is_positive`.
  float at(int64_t row, int64_t column) const { return tile(row / kRows)[column * kRows + row % kRows]; }
  bool is_positive() const { return is_positive_; }

 private:
  static constexpr int64_t kBlock = 64;           // columns taken together
  static constexpr int kColumns = 4;              // whose sums are in registers, times
  static constexpr int kRows = 2 * kDoubleLanes;  // the rows of a tile

  float* tile(int64_t index) const { return factor_.as<float>() + index * size_ * kRows; }

  // Columns [first, first + count): the sums over all columns before them, then those over each other.
  void add_block(int64_t first, int64_t count) {
    std::vector<double> own(size_t(first) * kBlock);  // rows first ... of the columns before: [row / kColumns][k][kColumns]
    for (int64_t j = 0; j < count; ++j)
      for (int64_t k = 0; k < first; ++k) own[(j / kColumns * first + k) * kColumns + j % kColumns] = at(first + j, k);
    const int64_t start = first / kRows;
    std::vector<double> sums(size_t(num_tiles_ - start) * kRows * kBlock);  // [tile][column][kRows]
    const auto sums_of = [&](int64_t index) { return sums.data() + (index - start) * kRows * kBlock; };
    for_tiles(start, [&](int64_t index) { sum_tile(index, first, count, own.data(), sums_of(index)); });
    for (int64_t j = 0; j < count; ++j) finish_diagonal(first, count, j, sums_of);
    if (is_positive_) for_tiles(start, [&](int64_t index) { finish_tile(index, first, count, sums_of(index)); });
  }

  template <class Visit>
  void for_tiles(int64_t start, Visit&& visit) const {
    constexpr int64_t kTaskTiles = 8;
    for_tasks(num_blocks(num_tiles_ - start, kTaskTiles), num_threads_, [&](int64_t task) {
      const int64_t first = start + task * kTaskTiles;
      for (int64_t index = first; index < std::min(first + kTaskTiles, num_tiles_); ++index) visit(index);
    });
  }

  // sums [column][kRows] = G - sum over k < first of L[row, k] L[column, k]
  void sum_tile(int64_t index, int64_t first, int64_t count, const double* own, double* sums) const {
    for (int64_t column = 0; column < kBlock; column += kColumns) {
      NativeDoubles local[kColumns][2];
      for (int c = 0; c < kColumns; ++c)
        for (int lane = 0; lane < kRows; ++lane) {
          const int64_t row = index * kRows + lane, j = first + column + c;
          const bool is_inside = row < size_ && column + c < count && j <= row;
          local[c][lane / kDoubleLanes][lane % kDoubleLanes] = is_inside ? matrix_[row * size_ + j] : 0.0;
        }
      subtract_products(local, tile(index), own + column * first, first);
      for (int c = 0; c < kColumns; ++c)
        for (int half = 0; half < 2; ++half) store(sums + (column + c) * kRows + half * kDoubleLanes, local[c][half]);
    }
  }

  static void subtract_products(NativeDoubles (&sums)[kColumns][2], const float* values, const double* own, int64_t num_k) {
    NativeDoubles local[kColumns][2];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) local[c][0] = sums[c][0], local[c][1] = sums[c][1];
    for (int64_t k = 0; k < num_k; ++k, values += kRows, own += kColumns) {
      const NativeDoubles low = doubles(values), high = doubles(values + kDoubleLanes);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const NativeDoubles factor = broadcast(own[c]);
        local[c][0] = subtract_exact_product(local[c][0], low, factor);
        local[c][1] = subtract_exact_product(local[c][1], high, factor);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sums[c][0] = local[c][0], sums[c][1] = local[c][1];
  }

  // Column first + j of the rows that the block's own columns cross, which all other rows need.
  template <class SumsOf>
  void finish_diagonal(int64_t first, int64_t count, int64_t j, SumsOf&& sums_of) {
    for (int64_t i = j; i < count; ++i) {
      const int64_t row = first + i;
      double sum = sums_of(row / kRows)[j * kRows + row % kRows];
      for (int64_t k = 0; k < j; ++k) sum -= double(at(row, first + k)) * double(at(first + j, first + k));
      if (i == j && !(sum > 0.0)) is_positive_ = false;
      tile(row / kRows)[(first + j) * kRows + row % kRows] =
          i == j ? float(std::sqrt(sum)) : float(sum / double(at(first + j, first + j)));
    }
  }

  // The rows of a tile that lie below the block.
  void finish_tile(int64_t index, int64_t first, int64_t count, const double* sums) const {
    const int64_t low = std::max(index * kRows, first + count) - index * kRows;
    for (int64_t j = 0; low < kRows && j < count; ++j) {
      NativeDoubles values[2] = {load<NativeDoubles>(sums + j * kRows), load<NativeDoubles>(sums + j * kRows + kDoubleLanes)};
      const float* before = tile(index) + first * kRows;
      for (int64_t k = 0; k < j; ++k, before += kRows) {
        const NativeDoubles factor = broadcast(at(first + j, first + k));
        values[0] = subtract_exact_product(values[0], doubles(before), factor);
        values[1] = subtract_exact_product(values[1], doubles(before + kDoubleLanes), factor);
      }
      const double diagonal = at(first + j, first + j);
      for (int64_t lane = low; lane < kRows; ++lane)
        tile(index)[(first + j) * kRows + lane] = float(values[lane / kDoubleLanes][lane % kDoubleLanes] / diagonal);
    }
  }

  const float* const matrix_;
  const int64_t size_, num_tiles_;
  const int num_threads_;
  Memory factor_;  // [tile][column][kRows]
  bool is_positive_ = true;
};

}  // namespace autoglm
