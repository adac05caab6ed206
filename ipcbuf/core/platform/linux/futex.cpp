// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// futex.cpp - sleeping on a shared word, and the barrier of those who sleep.
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

int futex_wait(const void* word, std::uint32_t expected, std::int64_t until_ns) noexcept {
  timespec until{};
  timespec* limit = nullptr;
  if (until_ns != kForever) {
    until.tv_sec = until_ns / 1'000'000'000;
    until.tv_nsec = until_ns % 1'000'000'000;
    limit = &until;
  }
  // FUTEX_WAIT_BITSET takes an absolute monotonic time; not PRIVATE: the word is shared.
  const long r = ::syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, limit, nullptr,
                           FUTEX_BITSET_MATCH_ANY);
  return r < 0 ? -errno : 0;
}

void futex_wake(const void* word, int n) noexcept {
  ::syscall(SYS_futex, word, FUTEX_WAKE, n, nullptr, nullptr, 0);
}

bool register_barrier() noexcept {
  return ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

bool barrier_all() noexcept {
  return ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
}

}  // namespace ipcbuf::platform
