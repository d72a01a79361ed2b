// Tables that decode the Huffman codes of a DEFLATE block (RFC 1951, 3.2.2).
#pragma once

#include <cstdint>

namespace autoglm {

constexpr int kLongestCode = 15;

// What stands in a table for each symbol: bits 0-4: how many bits the code takes with its extra bits; 8-11: the code
// alone; 15: no literal and no match; 16-30: a literal, the base of a length or distance, or where a table of long codes
// begins; 31: a literal.
using Entry = uint32_t;
constexpr Entry kLiteral = 1u << 31, kSpecial = 1u << 15;
constexpr Entry kEnd = kSpecial | 1u << 14, kLong = kSpecial | 1u << 13, kInvalid = kSpecial;

constexpr int bits_of(Entry entry) { return entry & 31; }
constexpr int code_bits(Entry entry) { return entry >> 8 & 15; }
constexpr uint32_t value_of(Entry entry) { return entry >> 16 & 0x7fff; }
constexpr Entry base(uint32_t value, uint32_t extra_bits) { return value << 16 | extra_bits; }
constexpr Entry literal(uint32_t value) { return kLiteral | value << 16; }

// `kBits`: codes up to so many bits are found at once; each longer one in a table behind, of those that begin alike.
template <int kBits, int kMaxSymbols>
class Huffman {
 public:
  // `lengths`: of each symbol's code, 0 for none. `entries`: of each symbol, without its code. False for what zlib
  // refuses, too: codes that overlap, or leave some out; one code alone, of one bit, or none is allowed with
  // `may_be_short`.
  bool build(const uint8_t* lengths, int num_symbols, const Entry* entries, bool may_be_short) {
    int counts[kLongestCode + 1] = {}, used = 0;
    for (int symbol = 0; symbol < num_symbols; ++symbol) ++counts[lengths[symbol]];
    counts[0] = 0;
    int left = 1;
    uint32_t next[kLongestCode + 2] = {};
    for (int length = 1; length <= kLongestCode; ++length) {
      left = 2 * left - counts[length];
      if (left < 0) return false;
      used += counts[length];
      next[length + 1] = (next[length] + counts[length]) << 1;
    }
    const bool is_short = used == 0 || (used == 1 && counts[1] == 1);
    if (left > 0 && !(may_be_short && is_short)) return false;
    if (left > 0) clear();
    size_ = 1 << kBits;
    for (uint32_t index = 0; index < (1u << kBits); ++index) starts_[index] = 0;
    for (int symbol = 0; symbol < num_symbols; ++symbol)
      if (const int length = lengths[symbol]) put(next[length]++, length, entries[symbol]);
    return true;
  }

  Entry find(uint64_t bits) const {
    const Entry entry = table_[bits & ((1u << kBits) - 1)];
    if (!(entry & kLong & ~kSpecial)) return entry;
    return table_[value_of(entry) + (bits >> kBits & (kLongSize - 1))];
  }

 private:
  static constexpr uint32_t kLongSize = 1u << (kLongestCode - kBits);

  void clear() {
    for (uint32_t index = 0; index < (1u << kBits); ++index) table_[index] = kInvalid;
  }

  void put(uint32_t code, int length, Entry entry) {
    const uint32_t low = reversed(code, length);
    entry += length | length << 8;
    if (length <= kBits) {
      for (uint32_t index = low; index < (1u << kBits); index += 1u << length) table_[index] = entry;
      return;
    }
    const uint32_t first = low & ((1u << kBits) - 1);
    if (starts_[first] == 0) {
      starts_[first] = static_cast<uint16_t>(size_);
      table_[first] = kLong | size_ << 16;
      size_ += kLongSize;
    }
    for (uint32_t index = low >> kBits; index < kLongSize; index += 1u << (length - kBits))
      table_[starts_[first] + index] = entry;
  }

  static uint32_t reversed(uint32_t code, int length) {
    uint32_t value = 0;
    for (int bit = 0; bit < length; ++bit) value |= (code >> bit & 1) << (length - 1 - bit);
    return value;
  }

  Entry table_[(1u << kBits) + kMaxSymbols * kLongSize];
  uint16_t starts_[1u << kBits];  // of the tables behind; 0: none
  uint32_t size_ = 0;
};

}  // namespace autoglm
