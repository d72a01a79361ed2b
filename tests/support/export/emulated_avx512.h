// The decoder's code for AVX-512 on a CPU without it: included first, with `-include`.
//
// The three instructions that the sources name are written out lane by lane; everything else follows the macros.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512VNNI__ 1
#ifdef EMULATED_BF16
#define __AVX512BF16__ 1
#endif

namespace emulated {

template <class Value, int kCount>
struct Lanes {
  Value values[kCount];
  template <class Vector>
  explicit Lanes(const Vector& vector) {
    static_assert(sizeof vector == sizeof values);
    std::memcpy(values, &vector, sizeof values);
  }
  Value operator[](int i) const { return values[i]; }
};

inline __m512 fmadd(__m512 a, __m512 b, __m512 sum) {
  for (int i = 0; i < 16; ++i) sum[i] = std::fma(a[i], b[i], sum[i]);
  return sum;
}

inline __m512i dpbusd(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  Lanes<uint32_t, 16> sums(sum);
  const Lanes<uint8_t, 64> a(unsigned_bytes);
  const Lanes<int8_t, 64> b(signed_bytes);
  for (int i = 0; i < 64; ++i) sums.values[i / 4] += uint32_t(int32_t(a[i]) * b[i]);
  std::memcpy(&sum, sums.values, sizeof sum);
  return sum;
}

// The second of each pair first, each product rounded with its sum.
template <class Pairs>
__m512 dpbf16(__m512 sum, const Pairs& a, const Pairs& b) {
  const Lanes<uint16_t, 32> left(a), right(b);
  const auto widened = [](uint16_t value) {
    const uint32_t bits = uint32_t{value} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
  };
  for (int i = 0; i < 16; ++i)
    for (int half = 1; half >= 0; --half)
      sum[i] = std::fma(widened(left[2 * i + half]), widened(right[2 * i + half]), sum[i]);
  return sum;
}

}  // namespace emulated

#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_dpbf16_ps emulated::dpbf16
