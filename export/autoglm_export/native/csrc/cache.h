// Keys and values of all slots, in bfloat16, laid out as the panels that the inner loop reads:
//     [slot][layer][kv head]: keys   [max_length / 32][head_size / 2][32 positions][2]
//                             values [max_length / 2][head_size to 32][2 positions]
// Scores sum over the head's dimensions, so keys are grouped along those; the weighted sum of values runs over
// positions, so values are grouped along these.
#pragma once

#include "memory.h"
#include "panel.h"

namespace autoglm {

constexpr int kPair = 2;                 // bfloat16 values in a group
constexpr int kTilePositions = 128;      // positions that attention takes at a time

struct CacheLayout {
  int num_slots, num_layers, num_kv_heads, head_size, max_length;

  int padded_length() const { return round_up(max_length, kTilePositions); }
  int value_width() const { return round_up(head_size, kPanelColumns); }
  int key_groups() const { return head_size / kPair; }
  int64_t key_elements() const { return int64_t{padded_length()} * head_size; }
  int64_t value_elements() const { return int64_t{padded_length()} * value_width(); }
  int64_t head_elements() const { return key_elements() + value_elements(); }
  int64_t heads() const { return int64_t{num_layers} * num_kv_heads; }
  size_t bytes() const { return static_cast<size_t>(num_slots * heads() * head_elements()) * sizeof(uint16_t); }
};

class Cache {
 public:
  explicit Cache(const CacheLayout& layout) : layout_(layout), memory_(layout.bytes()) {}

  const CacheLayout& layout() const { return layout_; }

  // The panel of 32 positions that begins at `position`.
  uint16_t* keys(int slot, int layer, int kv_head, int position) const {
    return head(slot, int64_t{layer} * layout_.num_kv_heads + kv_head) + int64_t{position} * layout_.head_size;
  }

  // The pair of positions that begins at `position`.
  uint16_t* values(int slot, int layer, int kv_head, int position) const {
    return head(slot, int64_t{layer} * layout_.num_kv_heads + kv_head) + layout_.key_elements() +
           int64_t{position} * layout_.value_width();
  }

  void append(int slot, int layer, int kv_head, int position, const uint16_t* key, const uint16_t* value) const {
    uint16_t* key_out = keys(slot, layer, kv_head, position / kPanelColumns * kPanelColumns) +
                        position % kPanelColumns * kPair;
    for (int i = 0; i < layout_.head_size; i += kPair)
      std::memcpy(key_out + i * kPanelColumns, key + i, kPair * sizeof *key);
    // One element at a time: the other of the pair may be another thread's.
    uint16_t* value_out = values(slot, layer, kv_head, position / kPair * kPair) + position % kPair;
    for (int i = 0; i < layout_.head_size; ++i) value_out[i * kPair] = value[i];
  }

  // Whole panels: what lies behind `length` is written before it is ever read.
  void copy_prefix(int source, int target, int length) const {
    const int64_t positions = round_up(length, kPanelColumns);
    for (int64_t index = 0; index < layout_.heads(); ++index) {
      const uint16_t* from = head(source, index);
      uint16_t* to = head(target, index);
      std::memcpy(to, from, positions * layout_.head_size * sizeof *to);
      std::memcpy(to + layout_.key_elements(), from + layout_.key_elements(),
                  positions * layout_.value_width() * sizeof *to);
    }
  }

 private:
  uint16_t* head(int slot, int64_t index) const {
    return memory_.as<uint16_t>() + (slot * layout_.heads() + index) * layout_.head_elements();
  }

  CacheLayout layout_;
  Memory memory_;
};

}  // namespace autoglm
