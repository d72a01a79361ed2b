// Bicubic interpolation, bit by bit as Pillow's, along rows and along columns.
//
// Source: Pillow's documentation of its filters (a = -0.5, the support grows with what is left out), and its arithmetic:
// weights in float64, rounded to 22 bits behind the point, sums in int32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <immintrin.h>

namespace autoglm {

constexpr int kFraction = 22;
constexpr int32_t kHalf = 1 << (kFraction - 1);
constexpr double kSupport = 2.0;
constexpr size_t kMostTaps = 256;  // of which sums of 255 * 2^15 do not overflow

inline double bicubic(double x) {
  constexpr double a = -0.5;
  x = x < 0 ? -x : x;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

inline uint8_t rounded(int32_t sum) {
  const int32_t value = sum >> kFraction;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// What each of `size` places is the sum of: `first`, and `count` weights from there on, of `source` values.
struct Taps {
  size_t size, most;            // places, weights of one
  std::vector<int32_t> first, count, weights;  // weights: [size][most], zeros behind `count`

  Taps(size_t source, size_t size) : size(size) {
    const double scale = static_cast<double>(source) / static_cast<double>(size);
    const double wide = scale < 1 ? 1 : scale, support = kSupport * wide, narrow = 1 / wide;
    most = static_cast<size_t>(std::ceil(support)) * 2 + 1;
    first.resize(size);
    count.resize(size);
    weights.resize(size * most);
    std::vector<double> exact(most);
    for (size_t place = 0; place < size; ++place) {
      const double center = (static_cast<double>(place) + 0.5) * scale;
      const int low = std::max(static_cast<int>(center - support + 0.5), 0);
      const int high = std::min(static_cast<int>(center + support + 0.5), static_cast<int>(source));
      double sum = 0;
      for (int at = low; at < high; ++at) sum += exact[at - low] = bicubic((at - center + 0.5) * narrow);
      for (int at = low; at < high; ++at) {
        const double weight = (sum != 0 ? exact[at - low] / sum : exact[at - low]) * (1 << kFraction);
        weights[place * most + at - low] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
      first[place] = low;
      count[place] = high - low;
    }
  }
};

// One row of pixels of three bytes to `taps.size` pixels.
inline void resample_row(const uint8_t* row, const Taps& taps, uint8_t* out) {
  for (size_t place = 0; place < taps.size; ++place, out += 3) {
    const int32_t* weights = taps.weights.data() + place * taps.most;
    const uint8_t* pixel = row + 3 * static_cast<size_t>(taps.first[place]);
    int32_t red = kHalf, green = kHalf, blue = kHalf;
    for (int32_t tap = 0; tap < taps.count[place]; ++tap, pixel += 3) {
      red += pixel[0] * weights[tap];
      green += pixel[1] * weights[tap];
      blue += pixel[2] * weights[tap];
    }
    out[0] = rounded(red);
    out[1] = rounded(green);
    out[2] = rounded(blue);
  }
}

#ifdef __AVX2__

// Four weights at a time, each as high * 2^15 + low: products of 16 bits are added in pairs.
class PairedTaps {
 public:
  static bool can_be(size_t source, const Taps& taps) {
    return padded(taps.most) <= kMostTaps && padded(taps.most) <= source;
  }

  PairedTaps(size_t source, const Taps& taps) : size_(taps.size), groups_(padded(taps.most) / 4) {
    first_.resize(size_);
    pairs_.resize(size_ * groups_ * 8);
    for (size_t place = 0; place < size_; ++place) {
      const size_t first = taps.first[place], moved = first - std::min(first, source - 4 * groups_);
      first_[place] = 3 * (first - moved);
      for (int32_t tap = 0; tap < taps.count[place]; ++tap) {
        const int32_t weight = taps.weights[place * taps.most + tap];
        const size_t at = tap + moved, group = (place * groups_ + at / 4) * 8 + at % 4;
        pairs_[group] = static_cast<int16_t>(weight & 0x7fff);
        pairs_[group + 4] = static_cast<int16_t>(weight >> 15);
      }
    }
  }

  // As `resample_row`; 4 bytes behind `row` and behind `out` may be read and written.
  void resample(const uint8_t* row, uint8_t* out) const {
    // Of 12 bytes: in the lower half red, green and blue of the first two pixels side by side, in the upper of the others.
    const __m256i order = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const int16_t* pairs = pairs_.data();
    for (size_t place = 0; place < size_; ++place, out += 3) {
      const uint8_t* pixels = row + first_[place];
      __m256i low = _mm256_setzero_si256(), high = low;
      for (size_t group = 0; group < groups_; ++group, pairs += 8, pixels += 12) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
        const __m256i values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
        const __m256i weights = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs)));
        const __m256i lows = _mm256_permutevar8x32_epi32(weights, spread);
        const __m256i highs = _mm256_permutevar8x32_epi32(weights, _mm256_add_epi32(spread, _mm256_set1_epi32(2)));
        low = _mm256_add_epi32(low, _mm256_madd_epi16(values, lows));
        high = _mm256_add_epi32(high, _mm256_madd_epi16(values, highs));
      }
      __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, 15), low);
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kFraction);
      const __m128i words = _mm_packus_epi32(sum, sum);
      const int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
      std::memcpy(out, &packed, sizeof packed);
    }
  }

 private:
  static size_t padded(size_t taps) { return (taps + 3) / 4 * 4; }

  size_t size_, groups_;
  std::vector<size_t> first_;   // the byte that the first weight belongs to
  std::vector<int16_t> pairs_;  // [size][groups][low and high][4]
};

#endif

// [height, width, 3] -> [height, columns, 3]
inline void resample_rows(const uint8_t* image, size_t height, size_t width, size_t columns, uint8_t* out) {
  const Taps taps(width, columns);
  size_t y = 0;
#ifdef __AVX2__
  if (PairedTaps::can_be(width, taps)) {
    const PairedTaps paired(width, taps);
    for (; y + 2 < height; ++y) paired.resample(image + 3 * y * width, out + 3 * y * columns);
  }
#endif
  for (; y < height; ++y) resample_row(image + 3 * y * width, taps, out + 3 * y * columns);
}

#ifdef __AVX2__
using Wide = __m256i;
#define AUTOGLM_WIDE(name) _mm256_##name
#define AUTOGLM_WIDE_SI(name) _mm256_##name##_si256
#else
using Wide = __m128i;
#define AUTOGLM_WIDE(name) _mm_##name
#define AUTOGLM_WIDE_SI(name) _mm_##name##_si128
#endif

// Sums of as many values side by side as a vector has bytes, of two taps at a time: as PairedTaps does it. Values are
// unpacked and packed in each 16 bytes by themselves, so they come out in their order.
class Columns {
 public:
  Columns() {
    for (Wide& sum : low_) sum = AUTOGLM_WIDE_SI(setzero)();
    for (Wide& sum : high_) sum = AUTOGLM_WIDE_SI(setzero)();
  }

  void add(const uint8_t* upper, const uint8_t* under, int32_t upper_weight, int32_t under_weight) {
    const Wide low = pair(upper_weight & 0x7fff, under_weight & 0x7fff);
    const Wide high = pair(upper_weight >> 15, under_weight >> 15);
    const Wide a = AUTOGLM_WIDE_SI(loadu)(reinterpret_cast<const Wide*>(upper)), zero = AUTOGLM_WIDE_SI(setzero)();
    const Wide b = AUTOGLM_WIDE_SI(loadu)(reinterpret_cast<const Wide*>(under));
    const Wide halves[2] = {AUTOGLM_WIDE(unpacklo_epi8)(a, b), AUTOGLM_WIDE(unpackhi_epi8)(a, b)};
    for (int half = 0; half < 2; ++half) {
      const Wide pairs[2] = {AUTOGLM_WIDE(unpacklo_epi8)(halves[half], zero),
                             AUTOGLM_WIDE(unpackhi_epi8)(halves[half], zero)};
      for (int part = 0; part < 2; ++part) {
        Wide &lows = low_[2 * half + part], &highs = high_[2 * half + part];
        lows = AUTOGLM_WIDE(add_epi32)(lows, AUTOGLM_WIDE(madd_epi16)(pairs[part], low));
        highs = AUTOGLM_WIDE(add_epi32)(highs, AUTOGLM_WIDE(madd_epi16)(pairs[part], high));
      }
    }
  }

  void store(uint8_t* out) const {
    Wide sums[4];
    for (int part = 0; part < 4; ++part) {
      const Wide sum = AUTOGLM_WIDE(add_epi32)(AUTOGLM_WIDE(slli_epi32)(high_[part], 15), low_[part]);
      sums[part] = AUTOGLM_WIDE(srai_epi32)(AUTOGLM_WIDE(add_epi32)(sum, AUTOGLM_WIDE(set1_epi32)(kHalf)), kFraction);
    }
    const Wide words = AUTOGLM_WIDE(packs_epi32)(sums[0], sums[1]);
    const Wide others = AUTOGLM_WIDE(packs_epi32)(sums[2], sums[3]);
    AUTOGLM_WIDE_SI(storeu)(reinterpret_cast<Wide*>(out), AUTOGLM_WIDE(packus_epi16)(words, others));
  }

 private:
  static Wide pair(int32_t first, int32_t second) {
    const uint32_t both = (static_cast<uint32_t>(first) & 0xffff) | static_cast<uint32_t>(second) << 16;
    return AUTOGLM_WIDE(set1_epi32)(static_cast<int32_t>(both));
  }

  Wide low_[4], high_[4];
};

// [height, row] -> [rows, row], of any values side by side.
inline void resample_columns(const uint8_t* image, size_t height, size_t row, size_t rows, uint8_t* out) {
  const Taps taps(height, rows);
  for (size_t place = 0; place < rows; ++place, out += row) {
    const int32_t* weights = taps.weights.data() + place * taps.most;
    const uint8_t* first = image + static_cast<size_t>(taps.first[place]) * row;
    const size_t count = taps.count[place];
    size_t at = 0;
    if (count <= kMostTaps)
      for (; at + sizeof(Wide) <= row; at += sizeof(Wide)) {
        Columns columns;
        const uint8_t* source = first + at;
        size_t tap = 0;
        for (; tap + 2 <= count; tap += 2, source += 2 * row)
          columns.add(source, source + row, weights[tap], weights[tap + 1]);
        if (tap < count) columns.add(source, source, weights[tap], 0);
        columns.store(out + at);
      }
    for (; at < row; ++at) {
      int32_t sum = kHalf;
      for (size_t tap = 0; tap < count; ++tap) sum += first[tap * row + at] * weights[tap];
      out[at] = rounded(sum);
    }
  }
}

// [height, width, 3] -> [rows, columns, 3]. Between the two passes values are rounded, so their order counts.
inline void resize(const uint8_t* image, size_t height, size_t width, size_t rows, size_t columns, bool columns_first,
                   uint8_t* out) {
  if (rows == height && columns == width) {
    std::memcpy(out, image, height * width * 3);
  } else if (columns == width) {
    resample_columns(image, height, width * 3, rows, out);
  } else if (rows == height) {
    resample_rows(image, height, width, columns, out);
  } else if (columns_first) {
    std::vector<uint8_t> between(rows * width * 3);
    resample_columns(image, height, width * 3, rows, between.data());
    resample_rows(between.data(), rows, width, columns, out);
  } else {
    std::vector<uint8_t> between(height * columns * 3);
    resample_rows(image, height, width, columns, between.data());
    resample_columns(between.data(), height, columns * 3, rows, out);
  }
}

}  // namespace autoglm
