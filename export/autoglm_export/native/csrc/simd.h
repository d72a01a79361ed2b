// Vectors of 16 lanes, written with the compilers' vector extensions so that one source serves every x86-64 CPU.
// Only the two dot products, which have instructions of their own, differ between CPUs.
//
// Nothing here may depend on how many rows are computed together: a token's numbers must not change with its company. Nor on
// the CPU: the sources are compiled with -ffp-contract=off, so that a multiplication and an addition always round twice, and
// are fused by hand only where the product is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

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
// Columns come as the panels hold them: each lane has a group of its own column. Rows give the same group of one row to every
// lane. What can be prepared once for all rows, or all columns, is; so a `Dot` says what it makes of either.

#if defined(__AVX512F__)
constexpr int kNativeBytes = 64;
#elif defined(__AVX2__)
constexpr int kNativeBytes = 32;
#else
constexpr int kNativeBytes = 16;
#endif

// What one instruction takes.
using NativeFloats = float __attribute__((vector_size(kNativeBytes)));
using NativeInts = int32_t __attribute__((vector_size(kNativeBytes)));
using NativeWords = uint32_t __attribute__((vector_size(kNativeBytes)));
using NativeHalves = uint16_t __attribute__((vector_size(kNativeBytes)));

template <class Vector>
AUTOGLM_INLINE Vector broadcast_word(const void* source) {
  uint32_t word;
  std::memcpy(&word, source, sizeof word);
  return (Vector)(NativeWords{} + word);
}

// a * b + sum where a * b is exact: rounded once, so that a CPU which fuses the two gives the same bits as one that does not.
AUTOGLM_INLINE NativeFloats add_exact_product(NativeFloats sum, NativeFloats a, NativeFloats b) {
#if defined(__AVX512F__)
  return (NativeFloats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
  return (NativeFloats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

// Four products of unsigned (column) and signed (row) bytes, added exactly.
#if defined(__AVX512VNNI__)
using RowValue = int8_t;

AUTOGLM_INLINE void store_row_values(RowValue* target, Bytes values) { store(target, values); }
AUTOGLM_INLINE Ints load_row_values(const RowValue* source) { return __builtin_convertvector(load<Bytes>(source), Ints); }

struct DotBytes {
  using Sum = NativeInts;
  using Columns = NativeInts;
  using Row = NativeInts;
  static constexpr int kRowGroupBytes = 4;
  static AUTOGLM_INLINE Columns columns(const void* group) { return load<NativeInts>(group); }
  static AUTOGLM_INLINE Row row(const void* group) { return broadcast_word<NativeInts>(group); }
  static AUTOGLM_INLINE Sum add(Sum sum, Columns columns, Row row) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)columns, (__m512i)row);
  }
};
#else
// Products of bytes would saturate at 16 bits, so even and odd bytes are widened and multiplied apart. Rows are stored wide
// already, the even bytes of each group before the odd ones.
using RowValue = int16_t;

AUTOGLM_INLINE void store_row_values(RowValue* target, Bytes values) {
  const __m128i even = _mm_srai_epi16(_mm_slli_epi16((__m128i)values, 8), 8), odd = _mm_srai_epi16((__m128i)values, 8);
  store(target, _mm_unpacklo_epi32(even, odd));
  store(target + kLanes / 2, _mm_unpackhi_epi32(even, odd));
}

AUTOGLM_INLINE Ints load_row_values(const RowValue* source) {
  Ints values;
  for (int group = 0; group < kLanes; group += 4)
    for (int i = 0; i < 4; ++i) values[group + i] = source[group + i / 2 + i % 2 * 2];
  return values;
}

struct DotBytes {
  struct Pairs {
    NativeInts even, odd;  // two 16-bit values a lane
  };
  using Sum = NativeInts;
  using Columns = Pairs;
  using Row = Pairs;
  static constexpr int kRowGroupBytes = 8;
  static AUTOGLM_INLINE Columns columns(const void* group) {
    const NativeHalves bytes = load<NativeHalves>(group);
    return {(NativeInts)(bytes & 0xff), (NativeInts)(bytes >> 8)};
  }
  static AUTOGLM_INLINE Row row(const void* group) {
    const char* pairs = static_cast<const char*>(group);
    return {broadcast_word<NativeInts>(pairs), broadcast_word<NativeInts>(pairs + 4)};
  }
  static AUTOGLM_INLINE Sum add(Sum sum, const Columns& columns, const Row& row) {
    return sum + multiply_pairs(columns.even, row.even) + multiply_pairs(columns.odd, row.odd);
  }

 private:
  static AUTOGLM_INLINE NativeInts multiply_pairs(NativeInts a, NativeInts b) {
#if defined(__AVX2__)
    return (NativeInts)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return (NativeInts)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
  }
};
#endif

// Two products of bfloat16, the second of each pair first, added in float32: products of 8-bit mantissas are exact.
struct DotBfloat16 {
  using Sum = NativeFloats;
  static constexpr int kRowGroupBytes = 4;
#if defined(__AVX512BF16__)
  using Columns = NativeInts;
  using Row = NativeInts;
  static AUTOGLM_INLINE Columns columns(const void* group) { return load<NativeInts>(group); }
  static AUTOGLM_INLINE Row row(const void* group) { return broadcast_word<NativeInts>(group); }
  static AUTOGLM_INLINE Sum add(Sum sum, Columns columns, Row row) {
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)columns, (__m512bh)row);
  }
#else
  struct Pair {
    NativeFloats first, second;
  };
  using Columns = Pair;
  using Row = Pair;
  static AUTOGLM_INLINE Columns columns(const void* group) { return widened(load<NativeWords>(group)); }
  static AUTOGLM_INLINE Row row(const void* group) { return widened(broadcast_word<NativeWords>(group)); }
  static AUTOGLM_INLINE Sum add(Sum sum, const Columns& columns, const Row& row) {
    return add_exact_product(add_exact_product(sum, columns.second, row.second), columns.first, row.first);
  }

 private:
  static AUTOGLM_INLINE Pair widened(NativeWords pair) {
    return {(NativeFloats)(pair << 16), (NativeFloats)(pair & 0xffff0000u)};
  }
#endif
};

}  // namespace autoglm
