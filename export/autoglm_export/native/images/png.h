// PNG files as screenshots are: eight bits a channel, red, green, blue and perhaps alpha, not interlaced.
//
// Every other file, and every damaged one, is left to another reader.
#pragma once

#include "inflate.h"
#include "unfilter.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

namespace autoglm {

inline uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

inline bool is_kind(const uint8_t* chunk, const char* kind) { return std::memcmp(chunk + 4, kind, 4) == 0; }

// Chunks that may stand before the pixels and say nothing of them.
inline bool says_nothing(const uint8_t* chunk) {
  for (const char* kind : {"gAMA", "cHRM", "sRGB", "iCCP", "pHYs", "sBIT", "tIME", "tEXt", "zTXt", "iTXt", "bKGD"})
    if (is_kind(chunk, kind)) return true;
  return false;
}

// What all IDAT chunks hold, with zeros behind it for Bits. Empty where they are not as `read_png` wants them.
inline std::vector<uint8_t> zlib_stream(const uint8_t* file, size_t size) {
  constexpr size_t kAround = 12;  // length, kind and checksum
  std::vector<uint8_t> stream;
  stream.reserve(size + Bits::kPadding);
  bool has_data = false;
  for (size_t at = 8; size - at >= kAround;) {
    const uint8_t* chunk = file + at;
    const size_t length = big_endian(chunk);
    if (length > size - at - kAround) return {};
    if (is_kind(chunk, "IDAT")) {
      has_data = true;
      stream.insert(stream.end(), chunk + 8, chunk + 8 + length);
    } else if (has_data) {
      if (!is_kind(chunk, "IEND") || length != 0) return {};
      stream.resize(stream.size() + Bits::kPadding);
      return stream;
    } else if (at == 8 ? !is_kind(chunk, "IHDR") || length != 13 : !says_nothing(chunk)) {
      return {};
    }
    at += kAround + length;
  }
  return {};
}

inline void keep_rgb(uint8_t* rgb, const uint8_t* row, size_t width, int channels) {
  if (channels == 3) {
    std::memcpy(rgb, row, 3 * width);
    return;
  }
  size_t x = 0;
#ifdef __SSSE3__
  const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  for (; x + 6 <= width; x += 4) {  // 16 bytes are written, of which 12 count
    const __m128i pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 4 * x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rgb + 3 * x), _mm_shuffle_epi8(pixels, order));
  }
#endif
  for (; x < width; ++x) std::memcpy(rgb + 3 * x, row + 4 * x, 3);
}

// Takes the rows of an image as their bytes come.
class Rows {
 public:
  Rows(size_t width, size_t height, int channels, uint8_t* rgb)
      : width_(width), left_(height), channels_(channels), size_(width * channels), rgb_(rgb), row_(size_), above_(size_) {}

  size_t raw_size() const { return 1 + size_; }
  bool are_complete() const { return left_ == 0; }

  // False for a filter that there is none of.
  bool add(const uint8_t* raw) {
    const bool is_known = channels_ == 3 ? unfilter<3>(row_.data(), raw, above_.data(), size_)
                                         : unfilter<4>(row_.data(), raw, above_.data(), size_);
    keep_rgb(rgb_, row_.data(), width_, channels_);
    rgb_ += 3 * width_;
    --left_;
    std::swap(row_, above_);
    return is_known;
  }

 private:
  size_t width_, left_;
  int channels_;
  size_t size_;
  uint8_t* rgb_;
  std::vector<uint8_t> row_, above_;
};

// Into `rows`, all of them; false for a stream that has others.
inline bool read_rows(const std::vector<uint8_t>& stream, Rows& rows) {
  constexpr size_t kPiece = 1 << 17;
  const size_t room = kWindow + rows.raw_size() + kPiece;
  std::unique_ptr<uint8_t[]> buffer(new uint8_t[room + kSlack]);
  Inflate inflate(stream.data(), stream.size() - Bits::kPadding);
  if (!inflate.begin()) return false;
  uint32_t sum = 1;
  uint8_t *taken = buffer.get(), *end = buffer.get();  // of the bytes there, those of whole rows were taken
  while (!inflate.has_ended()) {
    uint8_t* const next = inflate.run(end, buffer.get() + room, end - buffer.get());
    if (next == nullptr) return false;
    sum = adler32(sum, end, next - end);
    end = next;
    for (; static_cast<size_t>(end - taken) >= rows.raw_size(); taken += rows.raw_size())
      if (rows.are_complete() || !rows.add(taken)) return false;
    const uint8_t* const kept = std::min<const uint8_t*>(taken, end - std::min<size_t>(end - buffer.get(), kWindow));
    const size_t moved = kept - buffer.get();
    std::memmove(buffer.get(), kept, end - kept);
    taken -= moved;
    end -= moved;
  }
  uint32_t expected;
  return rows.are_complete() && taken == end && inflate.end(expected) && expected == sum;
}

// `file`: of `size` bytes, whose header says `width`, `height` and `channels`. `rgb`: [height, width, 3]. False where
// another reader is to read it; `rgb` may then hold anything.
inline bool read_png(const uint8_t* file, size_t size, size_t width, size_t height, int channels, uint8_t* rgb) {
  const std::vector<uint8_t> stream = zlib_stream(file, size);
  if (stream.empty()) return false;
  Rows rows(width, height, channels, rgb);
  return read_rows(stream, rows);
}

}  // namespace autoglm
