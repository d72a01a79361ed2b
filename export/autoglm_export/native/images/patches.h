// An image cut into patches, each value looked up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace autoglm {

// `image`: [rows * patch, columns * patch, 3]; `tables`: [3][256]. `out`: [rows * columns][3][patch][patch], the patches
// of merge x merge side by side after each other.
inline void cut(const uint8_t* image, size_t rows, size_t columns, size_t patch, size_t merge, const float* tables,
                float* out) {
  const size_t stride = 3 * columns * patch;
  for (size_t number = 0; number < rows * columns; ++number) {
    const size_t token = number / (merge * merge), inside = number % (merge * merge), across = columns / merge;
    const size_t row = token / across * merge + inside / merge, column = token % across * merge + inside % merge;
    for (size_t channel = 0; channel < 3; ++channel) {
      const uint8_t* corner = image + row * patch * stride + 3 * column * patch + channel;
      const float* table = tables + 256 * channel;
      for (size_t y = 0; y < patch; ++y)
        for (size_t x = 0; x < patch; ++x) *out++ = table[corner[y * stride + 3 * x]];
    }
  }
}

}  // namespace autoglm
