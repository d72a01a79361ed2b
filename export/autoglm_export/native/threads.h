// A team of threads that run one function together and meet at barriers.
//
// The cores are shared with a server, so nobody spins for long: a member that waits looks for kSpin, then sleeps.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace autoglm {

// A counter that threads can wait on.
class Signal {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }

  void advance() {
    value_.fetch_add(1);  // sequentially consistent, like `sleepers_`: either we see the sleeper or it sees the change
    if (sleepers_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
  }

  void wait_while(uint32_t seen, std::chrono::microseconds spin) {
    const auto deadline = std::chrono::steady_clock::now() + spin;
    do {
      for (int i = 0; i < kLooksPerClockReading; ++i) {
        if (value() != seen) return;
        __builtin_ia32_pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
    sleepers_.fetch_add(1);
    while (value_.load() == seen) futex(FUTEX_WAIT_PRIVATE, seen);
    sleepers_.fetch_sub(1);
  }

 private:
  static constexpr int kLooksPerClockReading = 32;

  void futex(int operation, uint32_t argument) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value_), operation, argument, nullptr, nullptr, 0);
  }

  alignas(64) std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
};

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
  }

  ~Team() {
    job_ = nullptr;
    start_.advance();
    for (std::thread& thread : threads_) thread.join();
  }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Run `job(member)` on every member, the caller being member 0, and return when all are done.
  void run(std::function<void(int)> job) {
    job_ = std::move(job);
    if (size_ > 1) start_.advance();
    job_(0);
    barrier();
  }

  // All that members did before is seen by all after.
  void barrier() {
    if (size_ == 1) return;
    const uint32_t phase = phase_.value();
    if (arrived_.fetch_add(1) + 1 == size_) {
      arrived_.store(0);
      phase_.advance();
    } else {
      phase_.wait_while(phase, kSpin);
    }
  }

 private:
  static constexpr std::chrono::microseconds kSpin{100};       // within a step the others are close
  static constexpr std::chrono::microseconds kIdleSpin{20};  // between steps there is sampling, at least

  void serve(int member) {
    for (uint32_t seen = 0;; ++seen) {
      start_.wait_while(seen, kIdleSpin);
      if (!job_) return;
      job_(member);
      barrier();
    }
  }

  const int size_;
  std::function<void(int)> job_;
  Signal start_, phase_;
  alignas(64) std::atomic<int> arrived_{0};
  std::vector<std::thread> threads_;
};

}  // namespace autoglm
