// Causal grouped-query attention over the cache: softmax in one pass over tiles of positions.
//
// The rows of a task are the query heads that share one key/value head, for a few neighbouring tokens of one sequence,
// so that the cache is read once for all of them. Tiles begin at fixed positions, and what a row masks adds exact
// zeros, so a row's result does not depend on the rows beside it.
#pragma once

#include <vector>

#include "cache.h"
#include "rows.h"

namespace autoglm {

constexpr int kTargetTaskRows = 48;
constexpr float kMaskedScore = -1e30f;

// Neighbouring tokens of one sequence, computed together: positions follow each other.
struct TokenRun {
  int slot, position, first_token, count;
};

// What one thread needs for one task, in its own cache.
class AttentionScratch {
 public:
  AttentionScratch(int max_rows, int value_width)
      : scores(size_t(max_rows) * kTilePositions),
        weights(size_t(max_rows) * kTilePositions),
        sums(size_t(max_rows) * value_width),
        largest(max_rows),
        total(max_rows) {}

  std::vector<float> scores;      // [rows][tile]
  std::vector<uint16_t> weights;  // [rows][tile], bfloat16
  std::vector<float> sums;        // [rows][value width]: weighted values so far
  std::vector<float> largest;     // [rows]: largest score so far, base 2
  std::vector<float> total;       // [rows]: sum of weights so far
};

struct AttentionTask {
  const uint16_t* queries;  // [rows][head size], bfloat16, scaled; rows go token by token, head by head
  int heads_per_token;
  TokenRun run;
  int layer, kv_head;

  int rows() const { return run.count * heads_per_token; }
  int last_position() const { return run.position + run.count - 1; }
  // How many positions of the tile at `tile` row `row` may see.
  int visible(int row, int tile) const {
    const int count = run.position + row / heads_per_token + 1 - tile;
    return count < 0 ? 0 : count > kTilePositions ? kTilePositions : count;
  }
};

inline void score_tile(const AttentionTask& task, const Cache& cache, int tile, int positions, AttentionScratch& scratch) {
  const int head_size = cache.layout().head_size;
  for (int first = 0; first < positions; first += kPanelColumns) {
    const uint16_t* keys = cache.keys(task.run.slot, task.layer, task.kv_head, tile + first);
    const uint16_t* values = cache.values(task.run.slot, task.layer, task.kv_head, tile + first);
    const Panel panel{keys, kPanelGroupBytes, bytes_between(keys, values)};
    for_row_blocks(task.rows(), [&](int row, auto count) {
      constexpr int kRows = decltype(count)::value;
      Floats sums[kRows][kPanelVectors] = {};
      const ptrdiff_t stride = head_size * sizeof(uint16_t);
      add_products<DotBfloat16, true>(sums, RowBlock{task.queries + int64_t{row} * head_size, stride}, panel,
                                       head_size / kPair);
      for (int r = 0; r < kRows; ++r)
        for (int half = 0; half < kPanelVectors; ++half)
          store(&scratch.scores[(row + r) * kTilePositions + first + half * kLanes], sums[r][half]);
    });
  }
}

// Scores of one row -> weights, relative to the largest score so far; what was summed before is scaled to match.
inline void weigh_row(float* scores, uint16_t* weights, int visible, int positions, int value_width, float& largest,
                      float& total, float* sums) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int width = round_up(positions, kLanes);
  Floats top = floats(largest);
  for (int i = 0; i < width; i += kLanes) {
    const Floats masked = lane + i < visible ? load<Floats>(scores + i) : floats(kMaskedScore);
    store(scores + i, masked);
    top = maximum(top, masked);
  }
  const float new_largest = max_lanes(top);
  Floats added{};
  for (int i = 0; i < width; i += kLanes) {
    const Floats weight = lane + i < visible ? exp2(load<Floats>(scores + i) - new_largest) : Floats{};
    const Halves rounded = to_bfloat16(weight);
    store(weights + i, rounded);
    added += from_bfloat16(rounded);
  }
  if (new_largest != largest) {
    const Floats factor = exp2(floats(largest - new_largest));
    total *= factor[0];
    for (int i = 0; i < value_width; i += kLanes) store(sums + i, load<Floats>(sums + i) * factor);
    largest = new_largest;
  }
  total += sum_lanes(added);
}

inline void weigh_tile(const AttentionTask& task, const Cache& cache, int tile, int positions, AttentionScratch& scratch) {
  const int value_width = cache.layout().value_width();
  for (int row = 0; row < task.rows(); ++row)
    weigh_row(&scratch.scores[row * kTilePositions], &scratch.weights[row * kTilePositions], task.visible(row, tile),
              positions, value_width, scratch.largest[row], scratch.total[row], &scratch.sums[row * value_width]);
}

// The keys to be read after this tile's values: those of the next tile, or of the next head's first one.
inline const uint16_t* next_keys(const AttentionTask& task, const Cache& cache, int tile) {
  if (tile + kTilePositions <= task.last_position())
    return cache.keys(task.run.slot, task.layer, task.kv_head, tile + kTilePositions);
  if (task.kv_head + 1 == cache.layout().num_kv_heads) return nullptr;
  return cache.keys(task.run.slot, task.layer, task.kv_head + 1, 0);
}

inline void add_values(const AttentionTask& task, const Cache& cache, int tile, int positions, AttentionScratch& scratch) {
  const int value_width = cache.layout().value_width();
  const uint16_t* values = cache.values(task.run.slot, task.layer, task.kv_head, tile);
  const uint16_t* next = next_keys(task, cache, tile);
  const ptrdiff_t ahead = next ? bytes_between(values, next) : 0;
  for (int column = 0; column < value_width; column += kPanelColumns) {
    const Panel panel{values + column * kPair, ptrdiff_t(value_width * kPair * sizeof *values), ahead};
    for_row_blocks(task.rows(), [&](int row, auto count) {
      constexpr int kRows = decltype(count)::value;
      float* out = &scratch.sums[row * value_width + column];
      Floats sums[kRows][kPanelVectors];
      for (int r = 0; r < kRows; ++r)
        for (int half = 0; half < kPanelVectors; ++half)
          sums[r][half] = load<Floats>(out + r * value_width + half * kLanes);
      add_products<DotBfloat16, true>(sums, {&scratch.weights[row * kTilePositions], kTilePositions * sizeof(uint16_t)},
                                       panel, (positions + 1) / kPair);
      for (int r = 0; r < kRows; ++r)
        for (int half = 0; half < kPanelVectors; ++half) store(out + r * value_width + half * kLanes, sums[r][half]);
    });
  }
}

// Writes row r to out(r), `head_size` floats.
template <class Out>
void attend(const AttentionTask& task, const Cache& cache, AttentionScratch& scratch, Out&& out) {
  const int value_width = cache.layout().value_width();
  std::fill_n(scratch.sums.begin(), task.rows() * value_width, 0.0f);
  std::fill_n(scratch.largest.begin(), task.rows(), kMaskedScore);
  std::fill_n(scratch.total.begin(), task.rows(), 0.0f);
  for (int tile = 0; tile <= task.last_position(); tile += kTilePositions) {
    const int positions = std::min(kTilePositions, task.last_position() + 1 - tile);
    score_tile(task, cache, tile, positions, scratch);
    weigh_tile(task, cache, tile, positions, scratch);
    add_values(task, cache, tile, positions, scratch);
  }
  for (int row = 0; row < task.rows(); ++row) {
    const float factor = 1.0f / scratch.total[row];
    float* target = out(row);
    for (int i = 0; i < cache.layout().head_size; ++i) target[i] = scratch.sums[row * value_width + i] * factor;
  }
}

}  // namespace autoglm
