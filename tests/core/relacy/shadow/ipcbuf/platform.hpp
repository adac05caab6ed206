// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// platform.hpp - in place of the core's: a kernel with one futex, whose sleepers no slice wakes,
// unless a test says so.
#pragma once

#include <cstdint>

#include "../../atomics.hpp"

namespace ipcbuf::platform {

inline constexpr std::int64_t kForever = INT64_MAX;

/// As the kernel does it: compares and goes to sleep under the lock of the word's bucket.
struct Futex {
  rl::mutex bucket;
  rl::var<int> asleep;      // threads
  rl::var<int> woken;       // of those
  bool has_slices = false;  // a sleeper may wake by itself
  void reset() { asleep($) = 0, woken($) = 0; }
  void wait(rl::atomic<std::uint32_t>& word, std::uint32_t expected) {
    bucket.lock($);
    if (word.load(rl::mo_relaxed, $) != expected) {
      bucket.unlock($);
      return;
    }
    asleep($) = asleep($) + 1;
    for (;;) {
      if (woken($) > 0) break;
      if (has_slices && rl::rand(4) == 0) {
        asleep($) = asleep($) - 1;
        bucket.unlock($);
        return;
      }
      bucket.unlock($);
      rl::yield(1, $);
      bucket.lock($);
    }
    woken($) = woken($) - 1;
    asleep($) = asleep($) - 1;
    bucket.unlock($);
  }
  void wake(int n) {
    bucket.lock($);
    const int sleepers = asleep($) - woken($);
    woken($) = woken($) + (n < sleepers ? n : sleepers);
    bucket.unlock($);
  }
};
inline Futex* the_futex = nullptr;

inline void cpu_pause() { rl::yield(1, $); }
inline std::int64_t monotonic_ns() { return 0; }
inline void futex_wait(void* word, std::uint32_t expected, std::int64_t) {
  the_futex->wait(*static_cast<rl::atomic<std::uint32_t>*>(word), expected);
}
inline void futex_wake(void*, int n) { the_futex->wake(n); }
inline void pause_ms(int) {}
inline bool barrier_all() {
#ifndef IPCBUF_WEAKEN
  rl::atomic_thread_fence(rl::mo_seq_cst, $);
#endif
  return true;
}

}  // namespace ipcbuf::platform
