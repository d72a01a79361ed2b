// Tasks that any thread takes; what they compute must not depend on who takes them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace autoglm {

template <class Task>
void for_tasks(int64_t num_tasks, int num_threads, Task&& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t index; (index = next++) < num_tasks;) task(index);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min<int64_t>(num_threads, num_tasks); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {  // the system refuses another one: those that there are do all
  }
  work();
  for (std::thread& thread : others) thread.join();
}

constexpr int64_t num_blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

}  // namespace autoglm
