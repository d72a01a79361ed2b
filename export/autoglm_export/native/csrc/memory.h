// Memory that is zero, aligned to pages, and taken from the system only where it is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace autoglm {

constexpr bool kHugePages = true;

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, bool huge_pages = false) : bytes_(bytes ? bytes : 1) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    if (huge_pages) madvise(data_, bytes_, MADV_HUGEPAGE);  // fewer address translations; a kernel without it just says no
  }
  ~Memory() {
    if (data_) munmap(data_, bytes_);
  }
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  Memory& operator=(Memory&&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace autoglm
