// A zlib stream -> its bytes (RFC 1950, RFC 1951), in pieces, of which the last 32 KiB stay.
//
// Refused is whatever zlib refuses, and some of what it accepts, as blocks of next to nothing: then the caller asks zlib.
#pragma once

#include "bits.h"
#include "huffman.h"

#include <algorithm>

namespace autoglm {

constexpr size_t kWindow = 32768;
constexpr size_t kLongestMatch = 258;
constexpr size_t kSlack = kLongestMatch + 32;  // bytes behind what `run` was allowed that it may write
// A block takes microseconds before its first byte, and some are 10 bits long: a file of them would take minutes.
constexpr size_t kFewBlocks = 1024, kBytesABlock = 1024;

class Inflate {
 public:
  // `data`: with Bits::kPadding bytes behind it.
  Inflate(const uint8_t* data, size_t size) : bits_(data, size) {
    for (int symbol = 0; symbol < 288; ++symbol) lengths_entries_[symbol] = length_entry(symbol);
    for (int symbol = 0; symbol < 32; ++symbol) distance_entries_[symbol] = distance_entry(symbol);
  }

  // False for no zlib stream.
  bool begin() {
    if (!bits_.fill()) return false;
    const uint32_t method = bits_.take(8), flags = bits_.take(8);
    return (method & 15) == 8 && method >> 4 <= 7 && (method << 8 | flags) % 31 == 0 && !(flags & 32);
  }

  // Goes on at `out`, and ends where that reaches `limit`, or the stream ends; up to kSlack bytes more may be written.
  // `before`: bytes in front of `out`, of what came before them at least the last kWindow. Null for a damaged stream.
  uint8_t* run(uint8_t* out, const uint8_t* limit, size_t before) {
    const uint8_t* const start = out - before;
    while (out < limit && state_ != State::kEnded) {
      if (state_ == State::kHeader && !read_header()) return nullptr;
      uint8_t* const next = state_ == State::kStored ? copy_stored(out, limit) : decode(out, limit, start);
      if (next == nullptr) return nullptr;
      num_bytes_ += next - out;
      out = next;
    }
    return out;
  }

  bool has_ended() const { return state_ == State::kEnded; }

  // The sum that the stream ends with, once it has ended; false where it is cut off, or more bytes follow.
  bool end(uint32_t& adler) {
    const uint8_t* next = bits_.to_byte();
    if (bits_.overran() || bits_.left() != 4) return false;
    adler = uint32_t{next[0]} << 24 | uint32_t{next[1]} << 16 | uint32_t{next[2]} << 8 | next[3];
    return true;
  }

 private:
  enum class State { kHeader, kStored, kCoded, kEnded };

  bool read_header() {
    if (++num_blocks_ > kFewBlocks + num_bytes_ / kBytesABlock || !bits_.fill()) return false;
    is_last_ = bits_.take(1);
    switch (bits_.take(2)) {
      case 0: return begin_stored();
      case 1: return begin_fixed();
      case 2: return begin_dynamic();
      default: return false;
    }
  }

  bool begin_stored() {
    const uint8_t* next = bits_.to_byte();
    if (bits_.left() < 4) return false;
    const uint32_t size = next[0] | next[1] << 8, inverse = next[2] | next[3] << 8;
    bits_.skip(4);
    stored_ = size;
    state_ = State::kStored;
    return (size ^ inverse) == 0xffff && size <= bits_.left();
  }

  bool begin_fixed() {
    uint8_t lengths[288], distances[32];
    for (int symbol = 0; symbol < 288; ++symbol)
      lengths[symbol] = symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8;
    std::fill_n(distances, 32, uint8_t{5});
    state_ = State::kCoded;
    return lengths_.build(lengths, 288, lengths_entries_, false) &&
           distances_.build(distances, 32, distance_entries_, false);
  }

  bool begin_dynamic() {
    static constexpr uint8_t kOrder[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const int num_lengths = bits_.take(5) + 257, num_distances = bits_.take(5) + 1, num_codes = bits_.take(4) + 4;
    if (num_lengths > 286 || num_distances > 30) return false;
    uint8_t codes[19] = {}, lengths[286 + 30];
    for (int index = 0; index < num_codes; ++index) {
      if (index % 16 == 0 && !bits_.fill()) return false;
      codes[kOrder[index]] = static_cast<uint8_t>(bits_.take(3));
    }
    Entry entries[19];
    for (int symbol = 0; symbol < 19; ++symbol) entries[symbol] = literal(symbol);
    if (!codes_.build(codes, 19, entries, false) || !read_lengths(lengths, num_lengths + num_distances)) return false;
    state_ = State::kCoded;
    return lengths[256] != 0 && lengths_.build(lengths, num_lengths, lengths_entries_, false) &&
           distances_.build(lengths + num_lengths, num_distances, distance_entries_, true);
  }

  bool read_lengths(uint8_t* lengths, int count) {
    for (int at = 0; at < count;) {
      if (!bits_.fill()) return false;
      const Entry entry = codes_.find(bits_.all());
      bits_.drop(bits_of(entry));
      const uint32_t symbol = value_of(entry);
      if (symbol < 16) {
        lengths[at++] = static_cast<uint8_t>(symbol);
        continue;
      }
      if (symbol == 16 && at == 0) return false;
      const uint8_t value = symbol == 16 ? lengths[at - 1] : 0;
      const int times = symbol == 16 ? 3 + bits_.take(2) : symbol == 17 ? 3 + bits_.take(3) : 11 + bits_.take(7);
      if (times > count - at) return false;
      std::fill_n(lengths + at, times, value);
      at += times;
    }
    return true;
  }

  uint8_t* copy_stored(uint8_t* out, const uint8_t* limit) {
    const size_t count = std::min<size_t>(stored_, limit - out);
    std::memcpy(out, bits_.to_byte(), count);
    bits_.skip(count);
    stored_ -= static_cast<uint32_t>(count);
    if (stored_ == 0) end_block();
    return out + count;
  }

  // 56 bits are three literals, or a length and a distance with their extra bits, which are 48 at most.
  uint8_t* decode(uint8_t* out, const uint8_t* limit, const uint8_t* start) {
    Bits bits = bits_;  // in registers
    while (out < limit) {
      if (!bits.fill()) return nullptr;
      Entry entry = lengths_.find(bits.all());
      int literals = 0;
      while (entry & kLiteral) {
        *out++ = static_cast<uint8_t>(value_of(entry));
        bits.drop(bits_of(entry));
        if (++literals == 3) break;
        entry = lengths_.find(bits.all());
      }
      if (literals == 3) continue;
      if (literals > 0 && !bits.fill()) return nullptr;
      if (entry & kSpecial) {
        if (!(entry & kEnd & ~kSpecial)) return nullptr;
        bits.drop(bits_of(entry));
        end_block();
        break;
      }
      const uint32_t length = with_extra(bits, entry);
      entry = distances_.find(bits.all());
      if (entry & kSpecial) return nullptr;
      const uint32_t distance = with_extra(bits, entry);
      if (distance > static_cast<size_t>(out - start)) return nullptr;
      copy_match(out, distance, length);
      out += length;
    }
    bits_ = bits;
    return out;
  }

  void end_block() { state_ = is_last_ ? State::kEnded : State::kHeader; }

  static uint32_t with_extra(Bits& bits, Entry entry) {
    const uint32_t value = value_of(entry) + (bits.peek(bits_of(entry)) >> code_bits(entry));
    bits.drop(bits_of(entry));
    return value;
  }

  // Writes up to 31 bytes more.
  static void copy_match(uint8_t* out, uint32_t distance, uint32_t length) {
    const uint8_t *from = out - distance, *const end = out + length;
    if (distance >= 16) {
      for (; out < end; out += 16, from += 16) std::memcpy(out, from, 16);
    } else if (distance >= 8) {
      for (; out < end; out += 8, from += 8) std::memcpy(out, from, 8);
    } else if (distance == 1) {
      std::memset(out, *from, length);
    } else {  // each word is right for `distance` bytes, and the next one is written over the rest
      for (uint64_t word; out < end; out += distance, from += distance) {
        std::memcpy(&word, from, sizeof word);
        std::memcpy(out, &word, sizeof word);
      }
    }
  }

  static Entry length_entry(int symbol) {
    if (symbol < 256) return literal(symbol);
    if (symbol == 256) return kEnd;
    if (symbol > 285) return kInvalid;
    if (symbol == 285) return base(258, 0);
    const int code = symbol - 257, extra = code < 8 ? 0 : code / 4 - 1;
    return code < 8 ? base(3 + code, 0) : base(3 + ((4 + code % 4) << extra), extra);
  }

  static Entry distance_entry(int symbol) {
    if (symbol > 29) return kInvalid;
    const int extra = symbol < 4 ? 0 : symbol / 2 - 1;
    return symbol < 4 ? base(1 + symbol, 0) : base(1 + ((2 + symbol % 2) << extra), extra);
  }

  Bits bits_;
  State state_ = State::kHeader;
  bool is_last_ = false;
  size_t num_blocks_ = 0, num_bytes_ = 0;
  uint32_t stored_ = 0;  // bytes of a stored block that are still to come
  Entry lengths_entries_[288], distance_entries_[32];
  Huffman<11, 288> lengths_;
  Huffman<8, 32> distances_;
  Huffman<7, 19> codes_;
};

// Of RFC 1950: `sum` goes on over `size` bytes; it begins with 1.
inline uint32_t adler32(uint32_t sum, const uint8_t* data, size_t size) {
  constexpr uint32_t kPrime = 65521, kBlock = 5552;  // the largest of which 32 bits hold both sums
  uint64_t low = sum & 0xffff, high = sum >> 16;
  while (size > 0) {
    const uint32_t count = static_cast<uint32_t>(std::min<size_t>(size, kBlock));
    uint32_t plain = 0, weighted = 0;
    for (uint32_t index = 0; index < count; ++index) {
      plain += data[index];
      weighted += (count - index) * data[index];
    }
    high = (high + count * low + weighted) % kPrime;
    low = (low + plain) % kPrime;
    data += count;
    size -= count;
  }
  return static_cast<uint32_t>(high << 16 | low);
}

}  // namespace autoglm
