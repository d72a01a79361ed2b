// Sines and cosines that do not depend on the CPU, as those of libm do: the same bits as `reproducible/transcendental.py`,
// which says where the method is from.
#pragma once

#include <cmath>
#include <cstdint>

namespace autoglm {

struct SineCosine {
  double sine, cosine;
};

inline SineCosine sine_cosine(double angle) {
  constexpr double kTwoOverPi = 0.636619772367581343076;
  constexpr double kHalfPi[3] = {1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21};
  constexpr int kNumTerms = 8;
  static constexpr double kSine[kNumTerms] = {
      -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000,
      1.0 / 355687428096000};
  static constexpr double kCosine[kNumTerms] = {
      -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200,
      1.0 / 20922789888000};
  const double turns = std::nearbyint(angle * kTwoOverPi);
  double rest = angle - turns * kHalfPi[0];
  rest = rest - turns * kHalfPi[1];
  rest = rest - turns * kHalfPi[2];
  const double square = rest * rest;
  double sine_series = kSine[kNumTerms - 1], cosine_series = kCosine[kNumTerms - 1];
  for (int i = kNumTerms - 2; i >= 0; --i) {
    sine_series = sine_series * square + kSine[i];
    cosine_series = cosine_series * square + kCosine[i];
  }
  const double sine = rest + rest * square * sine_series, cosine = 1.0 + square * cosine_series;
  const int64_t quarter = int64_t(turns) & 3;
  const double first = quarter & 1 ? cosine : sine, second = quarter & 1 ? sine : cosine;
  return {quarter & 2 ? -first : first, (quarter + 1) & 2 ? -second : second};
}

}  // namespace autoglm
