// What the model `vision` calls, through ctypes. The caller has checked every range; nothing throws past these functions.
#include "patches.h"
#include "png.h"
#include "resample.h"

#include <exception>

#pragma GCC visibility push(default)
extern "C" {

// As autoglm::read_png: 1 for read, 0 for what another reader is to read, or for lack of memory.
int32_t autoglm_read_png(const uint8_t* file, int64_t size, int32_t width, int32_t height, int32_t channels,
                         uint8_t* rgb) {
  try {
    return autoglm::read_png(file, size, width, height, channels, rgb);
  } catch (const std::exception&) {
    return 0;
  }
}

// As autoglm::resize: 1, or 0 for lack of memory.
int32_t autoglm_resize(const uint8_t* image, int32_t height, int32_t width, int32_t rows, int32_t columns,
                       int32_t columns_first, uint8_t* out) {
  try {
    autoglm::resize(image, height, width, rows, columns, columns_first, out);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// As autoglm::cut.
void autoglm_cut(const uint8_t* image, int32_t rows, int32_t columns, int32_t patch, int32_t merge, const float* tables,
                 float* out) {
  autoglm::cut(image, rows, columns, patch, merge, tables, out);
}

}
#pragma GCC visibility pop
