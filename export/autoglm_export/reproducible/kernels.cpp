// What the exporter calls, through ctypes; `compiled.py` has checked shapes. See reference.py for what each one computes.
#include "cholesky.h"
#include "rounding.h"
#include "transforms.h"

using namespace autoglm;

namespace {
constexpr int64_t kTaskRows = 64;

template <class Visit>
void for_rows(int64_t num_rows, int num_threads, Visit&& visit) {
  for_tasks(num_blocks(num_rows, kTaskRows), num_threads, [&](int64_t task) {
    for (int64_t row = task * kTaskRows; row < std::min(num_rows, (task + 1) * kTaskRows); ++row) visit(row);
  });
}

// Calls visit(first, width) for each vector of `count` values; the last one may be narrower.
template <class Visit>
void for_lanes(int64_t count, int num_threads, Visit&& visit) {
  constexpr int64_t kTaskLanes = 1 << 14;
  for_tasks(num_blocks(count, kTaskLanes), num_threads, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kTaskLanes);
    for (int64_t i = task * kTaskLanes; i < end; i += kLanes) visit(i, std::min<int64_t>(kLanes, end - i));
  });
}

AUTOGLM_INLINE Floats load_lanes(const float* source, int64_t width) {
  if (width == kLanes) return load<Floats>(source);
  float lanes[kLanes] = {};
  std::copy_n(source, width, lanes);
  return load<Floats>(lanes);
}

AUTOGLM_INLINE void store_lanes(float* target, int64_t width, Floats values) {
  if (width == kLanes) return store(target, values);
  float lanes[kLanes];
  store(lanes, values);
  std::copy_n(lanes, width, target);
}

AUTOGLM_INLINE Floats exponential(Floats value) { return autoglm::exp2(value * kLog2E); }
}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// out [num_rows, num_columns] = rows [num_rows, num_k] x columns [num_columns, num_k]^T
void autoglm_products(const float* rows, const float* columns, int64_t num_rows, int64_t num_columns, int64_t num_k,
                      int32_t num_threads, float* out) {
  multiply({rows, num_rows, num_k, 1}, {columns, num_columns, num_k, 1}, num_k, false, num_threads, out);
}

// out [size, size] = x^T x of columns [first, first + size) of x [num_rows, stride]
void autoglm_gram(const float* x, int64_t num_rows, int64_t stride, int64_t first, int64_t size, int32_t num_threads,
                  float* out) {
  const Operand columns{x + first, size, 1, stride};
  multiply(columns, columns, num_rows, true, num_threads, out);
  for_rows(size, num_threads, [&](int64_t row) {
    for (int64_t column = row + 1; column < size; ++column) out[row * size + column] = out[column * size + row];
  });
}

// out [size, size], lower: L / diagonal of L, where matrix = L L^T. 0 where the matrix is not positive definite.
int32_t autoglm_feedback(const float* matrix, int64_t size, int32_t num_threads, float* out) {
  const Cholesky factor(matrix, size, num_threads);
  if (!factor.is_positive()) return 0;
  for_rows(size, num_threads, [&](int64_t row) {
    for (int64_t column = 0; column < size; ++column)
      out[row * size + column] = column > row ? 0.0f : factor.at(row, column) / factor.at(column, column);
  });
  return 1;
}

int64_t autoglm_padded_columns(int64_t columns) { return num_blocks(columns, kTileColumns) * kTileColumns; }

// `feedback` [size, size] of the inputs [first, first + size).
void autoglm_round(const float* weights, int64_t columns, int64_t inputs, const float* scales, const int32_t* scale_rows,
                   float limit, const float* feedback, int64_t first, int64_t size, int32_t num_threads, int8_t* values) {
  const Rounding rounding{weights, scales, scale_rows, columns, inputs, limit, values};
  const Feedback packed(feedback, size);
  for_tasks(num_blocks(columns, kTileColumns), num_threads, [&](int64_t task) {
    ColumnTile(rounding, size).round(packed, first, task * kTileColumns);
  });
}

// out [num_vectors, size] = each of the vectors times `factors`, rotated. Element i of vector v lies at v * stride + i * step,
// there and in `out`.
void autoglm_rotate(const float* vectors, int64_t num_vectors, int64_t stride, int64_t step, const float* factors,
                    const float* left, int64_t left_size, int64_t right_size, int32_t num_threads, float* out) {
  const Rotation rotation{factors, left, left_size, right_size, kLanes};
  const int64_t size = left_size * right_size;
  for_tasks(num_blocks(num_vectors, kLanes), num_threads, [&](int64_t task) {
    const int64_t first = task * kLanes, width = std::min<int64_t>(kLanes, num_vectors - first);
    std::vector<float> from(rotation.size()), to(rotation.size());
    const auto for_elements = [&](auto&& visit) {
      constexpr int64_t kBlock = 16;  // of either side: whole cache lines
      for (int64_t start = 0; start < size; start += kBlock)
        for (int64_t lane = 0; lane < width; ++lane)
          for (int64_t i = start; i < std::min(start + kBlock, size); ++i)
            visit((first + lane) * stride + i * step, i * kLanes + lane);
    };
    for_elements([&](int64_t outside, int64_t inside) { from[inside] = vectors[outside]; });
    VectorRotation(rotation).apply(from.data(), to.data());
    for_elements([&](int64_t outside, int64_t inside) { out[outside] = to[inside]; });
  });
}

// out = blocks of `block` vectors of `lanes` values of each row, times a Hadamard matrix and `scale`.
void autoglm_mix(const float* rows, int64_t num_rows, int64_t width, int64_t block, int64_t lanes, float scale,
                 int32_t num_threads, float* out) {
  for_rows(num_rows, num_threads, [&](int64_t row) {
    float* mixed = out + row * width;
    std::copy_n(rows + row * width, width, mixed);
    hadamard(mixed, width, block, lanes);
    for (int64_t i = 0; i < width; ++i) mixed[i] *= scale;
  });
}

// out [num_rows] = the largest magnitude of each row
void autoglm_largest(const float* rows, int64_t num_rows, int64_t width, int32_t num_threads, float* out) {
  for_rows(num_rows, num_threads, [&](int64_t row) {
    float lanes[kLanes] = {};
    const float* values = rows + row * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], std::fabs(values[i + lane]));
    for (; i < width; ++i) lanes[0] = std::max(lanes[0], std::fabs(values[i]));
    out[row] = *std::max_element(lanes, lanes + kLanes);
  });
}

void autoglm_dot(const float* rows, const float* vector, int64_t num_rows, int64_t width, int32_t num_threads, float* out) {
  for_rows(num_rows, num_threads, [&](int64_t row) { out[row] = dot(rows + row * width, vector, width); });
}

void autoglm_exp(const float* values, int64_t count, int32_t num_threads, float* out) {
  for_lanes(count, num_threads, [&](int64_t i, int64_t width) {
    store_lanes(out + i, width, exponential(load_lanes(values + i, width)));
  });
}

// out = gate / (1 + e^-gate) * up
void autoglm_swiglu(const float* gate, const float* up, int64_t count, int32_t num_threads, float* out) {
  for_lanes(count, num_threads, [&](int64_t i, int64_t width) {
    const Floats opening = load_lanes(gate + i, width);
    store_lanes(out + i, width, opening / (exponential(-opening) + 1.0f) * load_lanes(up + i, width));
  });
}
}
#pragma GCC visibility pop
