// Bits of a DEFLATE stream, the first one lowest (RFC 1951, 3.1.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace autoglm {

// Reads may go beyond the end: up to `kPadding` bytes of zeros have to follow. `overran` tells that bits were used which
// are not there; whatever was made of them is worthless.
class Bits {
 public:
  static constexpr size_t kPadding = 32;
  static constexpr int kFilled = 56;  // bits that are there, at least, after `fill`

  Bits(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  // False where bits were asked for far beyond the end.
  bool fill() {
    if (next_ > end_ + sizeof(uint64_t)) return false;
    uint64_t word;
    std::memcpy(&word, next_, sizeof word);
    bits_ |= word << count_;
    next_ += (63 - count_) >> 3;
    count_ |= kFilled;
    return true;
  }

  uint64_t all() const { return bits_; }
  uint32_t peek(int count) const { return static_cast<uint32_t>(bits_ & ((uint64_t{1} << count) - 1)); }

  void drop(int count) {
    bits_ >>= count;
    count_ -= count;
  }

  uint32_t take(int count) {
    const uint32_t value = peek(count);
    drop(count);
    return value;
  }

  // On to the next whole byte; where that lies. The bits that were read ahead are given back.
  const uint8_t* to_byte() {
    drop(count_ & 7);
    next_ -= count_ >> 3;
    bits_ = 0;
    count_ = 0;
    return next_;
  }

  void skip(size_t bytes) { next_ += bytes; }  // behind `to_byte`
  size_t left() const { return next_ < end_ ? static_cast<size_t>(end_ - next_) : 0; }
  bool overran() const { return next_ - (count_ >> 3) > end_; }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  uint64_t bits_ = 0;
  int count_ = 0;
};

}  // namespace autoglm
