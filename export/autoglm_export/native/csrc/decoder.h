// Runs the program over the tokens of one step, all members of the team together, an operation at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "program.h"
#include "threads.h"
#include "trigonometry.h"

namespace autoglm {

// Tokens of one sequence, as the caller gives them: `token_ids[first_token ...]` go to `slot` from `position` on. Logits are
// wanted of the last `num_logits` of them.
struct Span {
  int32_t slot, position, num_tokens, num_logits;
};

// What is told of each token, from the first that is not computed yet. Without `positions`, its place in the sequence
// is all three; without `features`, no id is below 0.
struct Tokens {
  const int32_t* ids;
  const int32_t* positions;
  const float* features;
};

struct Settings {
  int32_t num_slots, max_length, max_rows, num_threads, max_logits_per_span;
};

class Decoder {
 public:
  Decoder(const int64_t* program, const uint8_t* weights, const Settings& settings)
      : header_(read_header(program)),
        weights_(weights),
        settings_(settings),
        cache_({settings.num_slots, int(header_.num_layers), int(header_.num_kv_heads), int(header_.head_size),
                settings.max_length}),
        operations_(read_operations(program)),
        team_(settings.num_threads, int(operations_.size()),
              [this](int stage, int task, int member) { run(operations_[stage], task, member); }) {
    allocate_rows();
    allocate_attention();
    fill_rope_table();
  }

  // Logits of the spans that want them are at `logits()`, in order, when this returns.
  // Those of a token that is not finite, or follows one in its slot, are NaN.
  void forward(const Span* spans, int num_spans, const Tokens& tokens) {
    tokens_ = tokens;
    for (int i = 0; i < num_spans; ++i)
      if (std::atomic<int>& first = first_broken_[spans[i].slot]; spans[i].position <= first) first = kNoPosition;
    int num_logits = 0;
    for (Wave wave{spans, spans + num_spans}; wave.next(*this);) {
      logits_ = buffers_[size_t(Buffer::kLogits)].row(num_logits);
      team_.run([this](int stage) { return num_tasks(operations_[stage]); });
      spoil_logits();
      num_logits += int(selected_.size());
    }
  }

  const float* logits() const { return buffers_[size_t(Buffer::kLogits)].values; }
  void copy_prefix(int source, int target, int length) {
    cache_.copy_prefix(source, target, length);
    const int first = first_broken_[source];
    first_broken_[target] = first < length ? first : kNoPosition;
  }

 private:
  struct Row {
    int slot, position;
    int32_t token_id;
    const float* turn;      // cosines and sines of its rotary embedding
    const float* features;  // of a token of an image: its embedding, then what is added in later layers
  };

  // One member's own.
  struct Scratch {
    AttentionScratch attention;
    std::vector<float> row;            // what is quantised
    std::vector<uint16_t> key, value;  // of the head that goes to the cache, bfloat16
  };

  // A step may hold more tokens than there are rows: they are taken in order, as many as fit at a time.
  struct Wave {
    const Span* span;
    const Span* end;
    int done = 0;  // tokens of *span

    bool next(Decoder& decoder) {
      decoder.rows_.clear();
      decoder.selected_.clear();
      decoder.first_tokens_[0].clear();
      decoder.first_tokens_[1].clear();
      decoder.runs_.clear();
      while (span != end) {
        const int room = decoder.settings_.max_rows - int(decoder.rows_.size());
        const int count = std::min(room, span->num_tokens - done);
        if (count == 0) break;
        decoder.add_rows(*span, done, count);
        done += count;
        if (done == span->num_tokens) ++span, done = 0;
      }
      return !decoder.rows_.empty();
    }
  };

  void add_rows(const Span& span, int done, int count) {
    for (int first = 0; first < count; first += tokens_per_task_) {
      const int size = std::min(tokens_per_task_, count - first);
      runs_.push_back({span.slot, span.position + done + first, int(rows_.size()), size});
      for (int i = 0; i < size; ++i) add_row(span.slot, span.position + done + first + i);
    }
    const int first_wanted = std::max(done, span.num_tokens - span.num_logits);
    for (int token = first_wanted; token < done + count; ++token) select_row(int(rows_.size()) - (done + count - token));
  }

  void select_row(int row) {
    if (rows_[row].position == 0) first_tokens_[1].push_back(int(selected_.size()));
    selected_.push_back(row);
  }

  void add_row(int slot, int position) {
    if (position == 0) first_tokens_[0].push_back(int(rows_.size()));
    const int32_t token_id = *tokens_.ids++;
    const float* turn = tokens_.positions ? next_turn() : turn_at(position);
    const float* features = tokens_.features && token_id < 0 ? next_features() : nullptr;
    rows_.push_back({slot, position, token_id, turn, features});
  }

  const float* turn_at(int position) const { return rope_table_.data() + int64_t{position} * header_.rope_dims; }

  // By one position where all three are equal, else section by section, which `turns_` keeps until the step is over.
  const float* next_turn() {
    const int32_t* positions = tokens_.positions;
    tokens_.positions += kNumSections;
    if (positions[0] == positions[1] && positions[1] == positions[2]) return turn_at(positions[0]);
    const int64_t half = header_.rope_dims / 2;
    float* const turn = turns_.data() + int64_t(rows_.size()) * header_.rope_dims;
    int64_t first = 0;
    for (int section = 0; section < kNumSections; ++section) {
      const int64_t size = header_.rope_sections[section];
      const float* source = turn_at(positions[section]);
      std::copy_n(source + first, size, turn + first);
      std::copy_n(source + half + first, size, turn + half + first);
      first += size;
    }
    return turn;
  }

  const float* next_features() {
    const float* features = tokens_.features;
    tokens_.features += num_feature_parts_ * header_.widths[size_t(Buffer::kResidual)];
    return features;
  }

  int count_feature_parts() const {
    const auto adds = [](const Operation& operation) { return operation.code == Code::kAddFeatures; };
    return 1 + int(std::count_if(operations_.begin(), operations_.end(), adds));
  }

  static size_t header_bytes(const int64_t* program) {
    return *program == kTextFormat ? offsetof(ProgramHeader, rope_sections) : sizeof(ProgramHeader);
  }

  static ProgramHeader read_header(const int64_t* program) {
    ProgramHeader header{};
    std::memcpy(&header, program, header_bytes(program));
    return header;
  }

  static std::vector<Operation> read_operations(const int64_t* program) {
    const auto* first = reinterpret_cast<const Operation*>(program + header_bytes(program) / sizeof *program);
    return {first, first + read_header(program).num_operations};
  }

  int num_rows(const Operation& operation) const { return int(operation.selected ? selected_.size() : rows_.size()); }

  int num_tasks(const Operation& operation) const {
    switch (operation.code) {
      case Code::kLinear: return num_rows(operation) ? num_parts(int(operation.columns) / kPanelColumns) : 0;
      case Code::kAttend: return int(runs_.size()) * int(header_.num_kv_heads) / heads_per_task();
      case Code::kSelect: return 1;
      default: return num_parts(num_rows(operation));
    }
  }

  void run(const Operation& operation, int task, int member) {
    switch (operation.code) {
      case Code::kEmbed: return embed(operation, task);
      case Code::kNormQuantise: return norm_quantise(operation, task, member);
      case Code::kQuantise: return quantise_rows(operation, task, member);
      case Code::kLinear: return linear(operation, task);
      case Code::kAddNorm: return add_norm(operation, task);
      case Code::kAppend: return append(operation, task, member);
      case Code::kAttend: return attend(operation, task, member);
      case Code::kSelect: return select(operation);
      case Code::kAddFeatures: return add_features(operation, task);
    }
  }

  // Things are cut into equal parts, a few for every member.
  int part_size(int count) const {
    const int parts = kPartsPerMember * team_.size();
    return (count + parts - 1) / parts;
  }
  int num_parts(int count) const { return count == 0 ? 0 : (count + part_size(count) - 1) / part_size(count); }

  template <class Visit>
  void for_rows(const Operation& operation, int task, Visit&& visit) const {
    const int size = part_size(num_rows(operation)), last = std::min(num_rows(operation), (task + 1) * size);
    for (int row = task * size; row < last; ++row) visit(row);
  }

  template <class T>
  const T* weight(int64_t offset) const {
    return offset == kNone ? nullptr : reinterpret_cast<const T*>(weights_ + offset);
  }

  FloatRows buffer(Buffer name) const {
    FloatRows rows = buffers_[size_t(name)];
    if (name == Buffer::kLogits) rows.values = logits_;
    return rows;
  }

  void embed(const Operation& operation, int task) {
    const FloatRows out = buffer(operation.target);
    for_rows(operation, task, [&](int row) {
      if (const float* features = rows_[row].features)
        std::copy_n(features, out.stride, out.row(row));
      else
        unpack_column(weight<uint8_t>(operation.weight), weight<float>(operation.scales), int(operation.inputs),
                      rows_[row].token_id, out.row(row));
    });
  }

  void add_features(const Operation& operation, int task) {
    const FloatRows out = buffer(operation.target);
    for_rows(operation, task, [&](int row) {
      if (const float* features = rows_[row].features)
        add(out.row(row), features + operation.detail * out.stride, int(out.stride));
    });
  }

  void norm_quantise(const Operation& operation, int task, int member) {
    const FloatRows in = buffer(operation.source);
    float* normed = scratch_[member].row.data();
    for_rows(operation, task, [&](int row) {
      rms_norm(in.row(row), weight<float>(operation.weight), int(in.stride), int(operation.inputs), epsilon_, normed);
      quantise_row(operation, normed, int(in.stride), row);
    });
  }

  // On a copy: what is mixed fills the padding, which an attention never writes, and would be there for the next token.
  void quantise_rows(const Operation& operation, int task, int member) {
    const FloatRows in = buffer(operation.source);
    float* copy = scratch_[member].row.data();
    for_rows(operation, task, [&](int row) {
      std::fill(std::copy_n(in.row(row), operation.inputs, copy), copy + in.stride, 0.0f);
      quantise_row(operation, copy, int(in.stride), row);
    });
  }

  // A sequence's first token keeps its remainder: every later token attends to it, and its own values are the largest of
  // all, so that what it loses would be lost to the whole sequence.
  // `values`, which are changed, have zeros behind them up to `width`.
  void quantise_row(const Operation& operation, float* values, int width, int row) {
    if (operation.bias != kNone) subtract(values, weight<float>(operation.bias), width);
    mix(values, width, int(operation.detail));
    quantise(values, width, quantised_.row(row));
    const std::vector<int>& first = first_tokens_[operation.selected];
    const auto found = std::lower_bound(first.begin(), first.end(), row);
    if (found != first.end() && *found == row)
      quantise_remainder(values, width, quantised_.row(row), remainders_.row(int(found - first.begin())));
  }

  void linear(const Operation& operation, int task) {
    const PackedMatrix matrix{weight<uint8_t>(operation.weight), weight<float>(operation.scales),
                              weight<float>(operation.bias), int(operation.inputs), int(operation.columns)};
    const int panels = matrix.columns / kPanelColumns, size = part_size(panels);
    const std::vector<int>& first = first_tokens_[operation.selected];
    const Remainders remainders{remainders_, first.data(), int(first.size())};
    multiply(Epilogue(operation.detail), quantised_, num_rows(operation), remainders, matrix, task * size,
             std::min(panels, (task + 1) * size), buffer(operation.target));
  }

  void add_norm(const Operation& operation, int task) {
    const FloatRows in = buffer(operation.source), out = buffer(operation.target);
    for_rows(operation, task, [&](int row) {
      add_rms_norm(in.row(row), weight<float>(operation.weight), int(out.stride), int(operation.inputs), epsilon_,
                   out.row(row));
    });
  }

  // Wanted rows are in order, so no row is overwritten before it is moved.
  void select(const Operation& operation) {
    const FloatRows rows = buffer(operation.target);
    for (size_t i = 0; i < selected_.size(); ++i)
      if (selected_[i] != int(i)) std::copy_n(rows.row(selected_[i]), rows.stride, rows.row(i));
  }

  // A cache holds no value that is not finite, or one that a weight of zero does not silence would reach the slot's next
  // sequence. So what was not is remembered here.
  void note_broken(Row row) {
    std::atomic<int>& first = first_broken_[row.slot];
    for (int known = first; row.position < known && !first.compare_exchange_weak(known, row.position);) {}
  }

  void spoil_logits() {
    const int64_t width = header_.widths[size_t(Buffer::kLogits)];
    for (size_t i = 0; i < selected_.size(); ++i) {
      const Row row = rows_[selected_[i]];
      if (row.position >= first_broken_[row.slot])
        std::fill_n(logits_ + int64_t(i) * width, width, std::numeric_limits<float>::quiet_NaN());
    }
  }

  void append(const Operation& operation, int task, int member) {
    for_rows(operation, task, [&](int row) { append_row(operation, row, scratch_[member]); });
  }

  // Whole runs where there are plenty: the next head's cache is then fetched while this one's is used.
  int heads_per_task() const {
    return int(runs_.size()) >= kPartsPerMember * team_.size() ? int(header_.num_kv_heads) : 1;
  }

  void attend(const Operation& operation, int task, int member) {
    for (int i = 0; i < heads_per_task(); ++i)
      attend_head(operation, task * heads_per_task() + i, scratch_[member].attention);
  }

  // Norm and rotate a token's queries and keys; keys and values go to the cache, queries to the attention's order.
  void append_row(const Operation& operation, int row, Scratch& scratch) {
    const int size = int(header_.head_size), heads = int(header_.num_heads), kv_heads = int(header_.num_kv_heads);
    float* head = buffer(operation.source).row(row);
    const Row token = rows_[row];
    const float* const first_head = head;
    for (int h = 0; h < heads; ++h, head += size) {
      prepare_head(head, weight<float>(operation.weight), token.turn);
      to_bfloat16_row(head, query_scale_, query(h / group_size(), row, h % group_size()));
    }
    uint16_t *key = scratch.key.data(), *value = scratch.value.data();
    for (int h = 0; h < kv_heads; ++h, head += size) {
      prepare_head(head, weight<float>(operation.scales), token.turn);
      to_bfloat16_row(head, 1.0f, key);
      to_bfloat16_row(head + int64_t{kv_heads} * size, 1.0f, value);
      cache_.append(token.slot, int(operation.detail), h, token.position, key, value);
    }
    if (!is_computable(first_head, (heads + 2 * kv_heads) * size)) note_broken(token);
  }

  void prepare_head(float* head, const float* norm, const float* turn) const {
    if (norm) norm_head(head, norm, int(header_.head_size), epsilon_);
    const int half = int(header_.rope_dims / 2);
    rotate(head, turn, turn + half, half);
  }

  void to_bfloat16_row(const float* row, float scale, uint16_t* out) const {
    const int size = int(header_.head_size), whole = size / kLanes * kLanes;
    for (int i = 0; i < whole; i += kLanes) store(out + i, to_bfloat16(load<Floats>(row + i) * scale));
    for (int i = whole; i < size; ++i) out[i] = to_bfloat16(floats(row[i] * scale))[0];
  }

  void attend_head(const Operation& operation, int index, AttentionScratch& scratch) {
    const int kv_head = index % int(header_.num_kv_heads);
    const TokenRun& run = runs_[index / header_.num_kv_heads];
    const AttentionTask task{query(kv_head, run.first_token, 0), group_size(), run, int(operation.detail), kv_head};
    const FloatRows out = buffer(operation.target);
    autoglm::attend(task, cache_, scratch, [&](int row) {
      const int head = kv_head * group_size() + row % group_size();
      return out.row(run.first_token + row / group_size()) + int64_t{head} * header_.head_size;
    });
  }

  int group_size() const { return int(header_.num_heads / header_.num_kv_heads); }

  // Queries are [kv head][token][head of the group][head size], so that the rows of a task follow each other.
  uint16_t* query(int kv_head, int row, int head) {
    return queries_->as<uint16_t>() +
           ((int64_t{kv_head} * settings_.max_rows + row) * group_size() + head) * header_.head_size;
  }

  void allocate_rows() {
    for (int i = 0; i < kNumBuffers; ++i) {
      const int64_t rows = Buffer(i) == Buffer::kLogits ? int64_t{settings_.num_slots} * settings_.max_logits_per_span
                                                        : int64_t{settings_.max_rows};
      memory_.emplace_back(rows * header_.widths[i] * sizeof(float), kHugePages);
      buffers_[i] = {memory_.back().as<float>(), header_.widths[i]};
    }
    for (std::atomic<int>& first : first_broken_) first = kNoPosition;
    row_scales_.resize(settings_.max_rows + settings_.num_slots);
    row_offsets_.resize(row_scales_.size());
    quantised_ = allocate_quantised(0, settings_.max_rows);
    remainders_ = allocate_quantised(settings_.max_rows, settings_.num_slots);
  }

  QuantisedRows allocate_quantised(int first, int count) {
    memory_.emplace_back(count * header_.quantised_width * sizeof(RowValue), kHugePages);
    return {memory_.back().as<RowValue>(), row_scales_.data() + first, row_offsets_.data() + first,
            int(header_.quantised_width)};
  }

  void allocate_attention() {
    double epsilon;
    std::memcpy(&epsilon, &header_.norm_epsilon, sizeof epsilon);
    epsilon_ = float(epsilon);
    query_scale_ = float(kLog2E / std::sqrt(double(header_.head_size)));  // scores are exponents of 2
    tokens_per_task_ = std::max(1, kTargetTaskRows / group_size());
    queries_ = std::make_unique<Memory>(int64_t{settings_.max_rows} * header_.num_heads * header_.head_size *
                                        sizeof(uint16_t));
    for (int member = 0; member < team_.size(); ++member)
      scratch_.push_back({AttentionScratch(tokens_per_task_ * group_size(), cache_.layout().value_width()),
                          std::vector<float>(header_.quantised_width), std::vector<uint16_t>(header_.head_size),
                          std::vector<uint16_t>(header_.head_size)});
  }

  void fill_rope_table() {
    const int64_t half = header_.rope_dims / 2;
    const double* frequencies = weight<double>(header_.rope_frequencies);
    rope_table_.resize(settings_.max_length * half * 2);
    if (header_.format == kImageFormat) turns_.resize(settings_.max_rows * half * 2);
    float* out = rope_table_.data();
    for (int position = 0; position < settings_.max_length; ++position, out += 2 * half)
      for (int i = 0; i < half; ++i) {
        const SineCosine turned = sine_cosine(position * frequencies[i]);
        out[i] = float(turned.cosine);
        out[half + i] = float(turned.sine);
      }
  }

  static constexpr int kNoPosition = std::numeric_limits<int>::max();  // of a slot whose tokens are all finite
  static constexpr int kPartsPerMember = 4;  // enough to even out, few enough for the memory to be read in long runs

  const ProgramHeader header_;
  const uint8_t* const weights_;
  const Settings settings_;
  Cache cache_;
  const std::vector<Operation> operations_;
  const int64_t num_feature_parts_ = count_feature_parts();

  std::vector<std::atomic<int>> first_broken_ = std::vector<std::atomic<int>>(settings_.num_slots);  // position, a slot
  std::vector<Memory> memory_;
  FloatRows buffers_[kNumBuffers];
  QuantisedRows quantised_{}, remainders_{};
  std::vector<float> row_scales_;
  std::vector<int32_t> row_offsets_;
  std::unique_ptr<Memory> queries_;
  std::vector<float> rope_table_;  // [max_length][cosines, sines][rope_dims / 2]
  std::vector<float> turns_;       // the same of each row that has its own
  std::vector<Scratch> scratch_;   // one a member
  float epsilon_ = 0, query_scale_ = 0;
  int tokens_per_task_ = 1;

  // The step at hand.
  Tokens tokens_{};
  float* logits_ = nullptr;
  std::vector<Row> rows_;
  std::vector<TokenRun> runs_;
  std::vector<int> selected_;         // rows whose logits are wanted
  std::vector<int> first_tokens_[2];  // rows at position 0: among all rows, and among the selected ones

  Team team_;  // last: its threads end before what they use
};

}  // namespace autoglm
