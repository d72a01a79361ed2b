// Vectors of 16 lanes, written with the compilers' vector extensions so that one source serves every x86-64 CPU.
// Only the two dot products, which have instructions of their own, differ between CPUs.
//
// Nothing here may depend on how many rows are computed together: a token's numbers must not change with its company.
// The sources are compiled with -ffp-contract=off, so that a multiplication and an addition always round twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace autoglm {

constexpr int kLanes = 16;

using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
using Bytes = int8_t __attribute__((vector_size(16)));

#define AUTOGLM_INLINE inline __attribute__((always_inline))

template <class Vector>
AUTOGLM_INLINE Vector load(const void* source) {
  Vector value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

template <class Vector>
AUTOGLM_INLINE void store(void* target, Vector value) {
  std::memcpy(target, &value, sizeof value);
}

AUTOGLM_INLINE Floats floats(float value) { return Floats{} + value; }

// The same four bytes in every lane: one group of a row, against the groups of 16 columns.
AUTOGLM_INLINE Ints broadcast_group(const void* source) {
  int32_t group;
  std::memcpy(&group, source, sizeof group);
  return Ints{} + group;
}

AUTOGLM_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
AUTOGLM_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
AUTOGLM_INLINE Floats absolute(Floats a) { return (Floats)((Words)a & 0x7fffffffu); }

// Pairwise over the lanes, always in the same order.
AUTOGLM_INLINE float sum_lanes(Floats value) {
  float lane[kLanes];
  store(lane, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

AUTOGLM_INLINE float max_lanes(Floats value) {
  float lane[kLanes];
  store(lane, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
}

AUTOGLM_INLINE uint32_t sum_lanes(Words value) {
  uint32_t lane[kLanes], total = 0;
  store(lane, value);
  for (uint32_t each : lane) total += each;
  return total;
}

// To the nearest integer, ties to even, for |value| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
AUTOGLM_INLINE Floats round_to_integer(Floats value) {
  constexpr float kShifter = 12582912.0f;
  return (value + kShifter) - kShifter;
}

// 2^value to about one unit in the last place; exactly 1 for 0. Values beyond +-126 count as +-126.
AUTOGLM_INLINE Floats exp2(Floats value) {
  constexpr float kLimit = 126.0f;
  value = minimum(maximum(value, floats(-kLimit)), floats(kLimit));
  const Floats whole = round_to_integer(value);
  const Floats rest = value - whole;  // [-0.5, 0.5]: the Taylor series of e^(rest ln 2) to the 7th power
  Floats result = floats(1.5252734e-5f);
  result = result * rest + 1.5403530e-4f;
  result = result * rest + 1.3333558e-3f;
  result = result * rest + 9.6181291e-3f;
  result = result * rest + 5.5504109e-2f;
  result = result * rest + 2.4022651e-1f;
  result = result * rest + 6.9314718e-1f;
  result = result * rest + 1.0f;
  const Ints exponent = __builtin_convertvector(whole, Ints) << 23;
  return (Floats)((Ints)result + exponent);
}

constexpr float kLog2E = 1.44269504088896340736f;

AUTOGLM_INLINE Floats silu(Floats value) { return value / (exp2(value * -kLog2E) + 1.0f); }

// ---- bfloat16: the upper half of a float ----

constexpr float kLargestBfloat16 = 3.3895313892515355e38f;

// Round to nearest, ties to even. NaN and infinities become finite: a cache must never hold a value that a weight of
// zero does not silence.
AUTOGLM_INLINE Halves to_bfloat16(Floats value) {
  value = value == value ? value : Floats{};
  value = minimum(maximum(value, floats(-kLargestBfloat16)), floats(kLargestBfloat16));
  const Words bits = (Words)value;
  return __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Halves);
}

AUTOGLM_INLINE Floats from_bfloat16(Halves value) {
  return (Floats)(__builtin_convertvector(value, Words) << 16);
}

// ---- dot products of groups of four bytes ----
// Each lane of `columns` holds a group of its own column, each lane of `row` the same group of one row.

// Four products of unsigned (column) and signed (row) bytes, added exactly.
struct DotBytes {
  using Sum = Ints;
  static AUTOGLM_INLINE Ints add(Ints sum, Ints columns, Ints row) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)columns, (__m512i)row);
#elif defined(__AVX2__)
    // maddubs would saturate at 16 bits, so even and odd bytes are widened and multiplied apart.
    __m256i c[2], r[2], s[2];
    store(c, columns), store(r, row), store(s, sum);
    for (int i = 0; i < 2; ++i) {
      const __m256i even = _mm256_madd_epi16(_mm256_and_si256(c[i], _mm256_set1_epi16(0xff)),
                                             _mm256_srai_epi16(_mm256_slli_epi16(r[i], 8), 8));
      const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(c[i], 8), _mm256_srai_epi16(r[i], 8));
      s[i] = _mm256_add_epi32(s[i], _mm256_add_epi32(even, odd));
    }
    return load<Ints>(s);
#else
    for (int byte = 0; byte < 4; ++byte) {
      const Ints column = (Ints)(((Words)columns >> (8 * byte)) & 0xffu);
      sum += column * (Ints)((Ints)((Words)row << (24 - 8 * byte)) >> 24);
    }
    return sum;
#endif
  }
};

// Two products of bfloat16, added in float32.
struct DotBfloat16 {
  using Sum = Floats;
  static AUTOGLM_INLINE Floats add(Floats sum, Ints columns, Ints row) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)columns, (__m512bh)row);
#else
    const Words upper = Words{} + 0xffff0000u;
    sum = sum + (Floats)((Words)columns & upper) * (Floats)((Words)row & upper);
    return sum + (Floats)((Words)columns << 16) * (Floats)((Words)row << 16);
#endif
  }
};

}  // namespace autoglm
