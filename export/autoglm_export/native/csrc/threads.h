// A team of threads that work through the stages of a step together.
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

// One stage of a step: a number of tasks that anybody takes, and that are all done before the next stage begins.
// Both counters carry the step's number in their upper half, so that a thread that comes late touches nothing of a newer step.
class Stage {
 public:
  enum class State { kTaken, kNoneLeft, kOver };

  void open(uint32_t step, uint32_t num_tasks) {
    waiting_.store(pack(step, num_tasks), std::memory_order_relaxed);
    unfinished_.store(pack(step, num_tasks), std::memory_order_relaxed);
  }

  // Takes a task, the last one first.
  State take(uint32_t step, int& task) {
    uint64_t seen = waiting_.load(std::memory_order_relaxed);
    do {
      if (seen >> 32 != step) return State::kOver;
      if (uint32_t(seen) == 0) return State::kNoneLeft;
    } while (!waiting_.compare_exchange_weak(seen, seen - 1, std::memory_order_relaxed));
    task = int(uint32_t(seen) - 1);
    return State::kTaken;
  }

  // True for the task that was finished last.
  bool finish() { return uint32_t(unfinished_.fetch_sub(1, std::memory_order_acq_rel)) == 1; }

  bool is_finished(uint32_t step) const { return unfinished_.load(std::memory_order_acquire) == pack(step, 0); }
  bool is_over(uint32_t step) const { return unfinished_.load(std::memory_order_acquire) >> 32 != step; }

 private:
  static constexpr uint64_t pack(uint32_t step, uint32_t count) { return uint64_t{step} << 32 | count; }

  alignas(64) std::atomic<uint64_t> waiting_{0};
  std::atomic<uint64_t> unfinished_{0};
};

// Runs steps: stage after stage, task by task. A thread that the system keeps from running holds the others up only for the
// one task that it has in hand; whoever is there does the rest.
class Team {
 public:
  using Task = std::function<void(int stage, int task, int member)>;

  // Throws std::system_error where the system refuses a thread; those that started have ended by then.
  Team(int size, int num_stages, Task task) : size_(size), stages_(num_stages), task_(std::move(task)) {
    try {
      for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
    } catch (...) {
      close();
      throw;
    }
  }

  ~Team() { close(); }

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Run one step, the caller being member 0, and return when its last stage is done.
  template <class CountTasks>
  void run(CountTasks&& num_tasks) {
    const uint32_t step = start_.value() + 1;
    for (size_t stage = 0; stage < stages_.size(); ++stage) stages_[stage].open(step, num_tasks(int(stage)));
    start_.advance();
    work(step, 0);
  }

 private:
  static constexpr std::chrono::microseconds kSpin{100};     // within a step the others are close
  static constexpr std::chrono::microseconds kIdleSpin{20};  // between steps there is sampling, at least

  void close() {
    is_closing_ = true;
    start_.advance();
    for (std::thread& thread : threads_) thread.join();
  }

  void serve(int member) {
    for (uint32_t step = 0;;) {
      start_.wait_while(step, kIdleSpin);
      if (is_closing_) return;
      step = start_.value();
      work(step, member);
    }
  }

  void work(uint32_t step, int member) {
    for (size_t i = 0; i < stages_.size(); ++i) {
      Stage& stage = stages_[i];
      Stage::State state;
      for (int task; (state = stage.take(step, task)) == Stage::State::kTaken;) {
        task_(int(i), task, member);
        if (stage.finish()) finished_.advance();
      }
      if (state == Stage::State::kOver || !wait(stage, step)) return;
    }
  }

  // False: the whole step is over.
  bool wait(const Stage& stage, uint32_t step) {
    for (;;) {
      const uint32_t seen = finished_.value();
      if (stage.is_finished(step)) return true;
      if (stage.is_over(step)) return false;
      finished_.wait_while(seen, kSpin);
    }
  }

  const int size_;
  std::vector<Stage> stages_;
  const Task task_;
  std::atomic<bool> is_closing_{false};
  Signal start_;     // its value is the number of the step
  Signal finished_;  // advances with every stage that is finished
  std::vector<std::thread> threads_;
};

}  // namespace autoglm
