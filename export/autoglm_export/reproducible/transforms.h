// Orthogonal transforms of rows, and full-precision sums: the same bits on any CPU.
#pragma once

#include <cmath>

#include "doubles.h"

namespace autoglm {

// Every `block` neighbouring vectors of `lanes` values times a Hadamard matrix, not normalised. `values` [count].
inline void hadamard(float* __restrict values, int64_t count, int64_t block, int64_t lanes) {
  for (float* first = values; first < values + count; first += block * lanes)
    for (int64_t half = lanes; half < block * lanes; half *= 2)
      for (int64_t start = 0; start < block * lanes; start += 2 * half)
        for (int64_t i = start; i < start + half; ++i) {
          const float a = first[i], b = first[i + half];
          first[i] = a + b;
          first[i + half] = a - b;
        }
}

// Of vectors of left_size * right_size elements, each of `lanes` values.
struct Rotation {
  const float* factors;  // [left_size * right_size]
  const float* left;     // [left_size, left_size]
  int64_t left_size, right_size, lanes;

  int64_t block() const { return right_size * lanes; }
  int64_t size() const { return left_size * block(); }
};

// out = (vector * factors) (left (x) Hadamard), lane by lane, summed in float64 in order.
class VectorRotation {
 public:
  explicit VectorRotation(const Rotation& rotation)
      : rotation_(rotation), mixed_(rotation.size()), values_(rotation.size()),
        left_(rotation.left, rotation.left + rotation.left_size * rotation.left_size) {}

  void apply(const float* vector, float* out) {
    const int64_t m = rotation_.left_size, n = rotation_.block(), lanes = rotation_.lanes;
    const float scale = 1.0f / std::sqrt(float(rotation_.right_size));
    for (int64_t i = 0; i < m * rotation_.right_size; ++i)
      for (int64_t lane = 0; lane < lanes; ++lane) mixed_[i * lanes + lane] = vector[i * lanes + lane] * rotation_.factors[i];
    hadamard(mixed_.data(), m * n, rotation_.right_size, lanes);
    for (int64_t i = 0; i < m * n; ++i) values_[i] = mixed_[i] * scale;
    int64_t a = 0;
    if (n % kChunk == 0)
      for (; a + kOutputs <= m; a += kOutputs)
        for (int64_t first = 0; first < n; first += kChunk) sum_chunk(a, first, out);
    for (; a < m; ++a)
      for (int64_t i = 0; i < n; ++i) sum_one(a, i, out);
  }

 private:
  static constexpr int kOutputs = 4, kChunk = 2 * kDoubleLanes;

  void sum_chunk(int64_t a, int64_t first, float* out) const {
    const int64_t m = rotation_.left_size, n = rotation_.block();
    NativeDoubles sums[kOutputs][2] = {};
    for (int64_t b = 0; b < m; ++b) {
      const auto low = load<NativeDoubles>(&values_[b * n + first]);
      const auto high = load<NativeDoubles>(&values_[b * n + first + kDoubleLanes]);
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const NativeDoubles factor = broadcast(left_[b * m + a + o]);
        sums[o][0] = add_exact_product(sums[o][0], low, factor);
        sums[o][1] = add_exact_product(sums[o][1], high, factor);
      }
    }
    for (int o = 0; o < kOutputs; ++o)
      for (int half = 0; half < 2; ++half)
        store(out + (a + o) * n + first + half * kDoubleLanes, __builtin_convertvector(sums[o][half], HalfNativeFloats));
  }

  void sum_one(int64_t a, int64_t i, float* out) const {
    double sum = 0;
    for (int64_t b = 0; b < rotation_.left_size; ++b)
      sum += values_[b * rotation_.block() + i] * left_[b * rotation_.left_size + a];
    out[a * rotation_.block() + i] = float(sum);
  }

  const Rotation& rotation_;
  std::vector<float> mixed_;
  std::vector<double> values_, left_;
};

// The sum of a * b in float64, in 16 lanes that are added pairwise at the end.
inline float dot(const float* a, const float* b, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += double(a[i + lane]) * double(b[i + lane]);
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += double(a[i]) * double(b[i]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return float(lanes[0]);
}

}  // namespace autoglm
