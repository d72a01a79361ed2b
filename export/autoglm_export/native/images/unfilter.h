// Rows of a PNG as they were before they were filtered (PNG specification, 9.2), of 3 or 4 bytes a pixel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

namespace autoglm {

// A pixel in the lowest bytes; what lies above is worthless.
template <int kBytes>
inline __m128i load_pixel(const uint8_t* source) {
  int32_t value = 0;
  std::memcpy(&value, source, kBytes);
  return _mm_cvtsi32_si128(value);
}

template <int kBytes>
inline void store_pixel(uint8_t* target, __m128i pixel) {
  const int32_t value = _mm_cvtsi128_si32(pixel);
  std::memcpy(target, &value, kBytes);
}

template <int kBytes>
void add_left(uint8_t* row, const uint8_t* raw, size_t size) {
  __m128i left = _mm_setzero_si128();
  for (size_t at = 0; at < size; at += kBytes) {
    left = _mm_add_epi8(left, load_pixel<kBytes>(raw + at));
    store_pixel<kBytes>(row + at, left);
  }
}

inline void add_above(uint8_t* row, const uint8_t* raw, const uint8_t* above, size_t size) {
  for (size_t at = 0; at < size; ++at) row[at] = static_cast<uint8_t>(raw[at] + above[at]);
}

// Half of left and above, rounded down: the instruction rounds up.
template <int kBytes>
void add_average(uint8_t* row, const uint8_t* raw, const uint8_t* above, size_t size) {
  const __m128i one = _mm_set1_epi8(1);
  __m128i left = _mm_setzero_si128();
  for (size_t at = 0; at < size; at += kBytes) {
    const __m128i up = load_pixel<kBytes>(above + at);
    const __m128i odd = _mm_and_si128(_mm_xor_si128(left, up), one);
    left = _mm_add_epi8(load_pixel<kBytes>(raw + at), _mm_sub_epi8(_mm_avg_epu8(left, up), odd));
    store_pixel<kBytes>(row + at, left);
  }
}

inline __m128i absolute(__m128i value) {
#ifdef __SSSE3__
  return _mm_abs_epi16(value);
#else
  return _mm_max_epi16(value, _mm_sub_epi16(_mm_setzero_si128(), value));
#endif
}

inline __m128i chosen(__m128i mask, __m128i a, __m128i b) {
#ifdef __SSE4_1__
  return _mm_blendv_epi8(b, a, mask);
#else
  return _mm_or_si128(_mm_and_si128(mask, a), _mm_andnot_si128(mask, b));
#endif
}

// Of left, above and the one left of above, the one nearest to left + above - that; in 16 bits a channel.
template <int kBytes>
void add_paeth(uint8_t* row, const uint8_t* raw, const uint8_t* above, size_t size) {
  const __m128i zero = _mm_setzero_si128();
  __m128i left = zero, corner = zero;
  for (size_t at = 0; at < size; at += kBytes) {
    const __m128i up = _mm_unpacklo_epi8(load_pixel<kBytes>(above + at), zero);
    const __m128i added = _mm_unpacklo_epi8(load_pixel<kBytes>(raw + at), zero);
    const __m128i to_left = _mm_sub_epi16(up, corner), to_up = _mm_sub_epi16(left, corner);
    const __m128i far_left = absolute(to_left), far_up = absolute(to_up);
    const __m128i far_corner = absolute(_mm_add_epi16(to_left, to_up));
    const __m128i nearest = _mm_min_epi16(far_corner, _mm_min_epi16(far_left, far_up));
    const __m128i other = chosen(_mm_cmpeq_epi16(nearest, far_up), up, corner);
    corner = up;
    left = _mm_add_epi8(added, chosen(_mm_cmpeq_epi16(nearest, far_left), left, other));
    store_pixel<kBytes>(row + at, _mm_packus_epi16(left, left));
  }
}

// `raw`: the filter's number, then `size` bytes. `above`: the row before, zeros for the first. False for no filter.
template <int kBytes>
bool unfilter(uint8_t* row, const uint8_t* raw, const uint8_t* above, size_t size) {
  const uint8_t filter = *raw++;
  switch (filter) {
    case 0: std::memcpy(row, raw, size); return true;
    case 1: add_left<kBytes>(row, raw, size); return true;
    case 2: add_above(row, raw, above, size); return true;
    case 3: add_average<kBytes>(row, raw, above, size); return true;
    case 4: add_paeth<kBytes>(row, raw, above, size); return true;
    default: return false;
  }
}

}  // namespace autoglm
