// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// futex.cpp - sleeping on a shared word, and the barrier of those who sleep.
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <ctime>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

namespace {

/// An absolute monotonic time as the kernel takes it; nullptr is for ever.
timespec* limit_of(std::int64_t until_ns, timespec& until) noexcept {
  if (until_ns == kForever) return nullptr;
  until.tv_sec = until_ns / 1'000'000'000;
  until.tv_nsec = until_ns % 1'000'000'000;
  return &until;
}

// linux/futex.h of older systems lacks these.
constexpr long kFutexWaitv = 449;
struct Waiter {
  std::uint64_t value;
  std::uint64_t address;
  std::uint32_t flags;
  std::uint32_t reserved;
};
constexpr std::uint32_t kSize32 = 2;  // shared, because not marked private

}  // namespace

int futex_wait(const void* word, std::uint32_t expected, std::int64_t until_ns) noexcept {
  timespec until{};
  timespec* const limit = limit_of(until_ns, until);
  // FUTEX_WAIT_BITSET takes an absolute monotonic time; not PRIVATE: the word is shared.
  const long r = ::syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, limit, nullptr,
                           FUTEX_BITSET_MATCH_ANY);
  return r < 0 ? -errno : 0;
}

void futex_wake(const void* word, int n) noexcept {
  ::syscall(SYS_futex, word, FUTEX_WAKE, n, nullptr, nullptr, 0);
}

bool has_futex_wait_any() noexcept {
  // No words at all: EINVAL from a kernel that knows the call.
  static const bool known =
      ::syscall(kFutexWaitv, nullptr, 0, 0, nullptr, CLOCK_MONOTONIC) < 0 && errno == EINVAL;
  return known;
}

int futex_wait_any(const FutexWait* waits, std::size_t n, std::int64_t until_ns) noexcept {
  Waiter waiters[kMaxFutexWaits];
  if (n > kMaxFutexWaits) return -EINVAL;
  for (std::size_t i = 0; i < n; ++i)
    waiters[i] = {waits[i].expected, reinterpret_cast<std::uintptr_t>(waits[i].word), kSize32, 0};
  timespec until{};
  const long r = ::syscall(kFutexWaitv, waiters, n, 0, limit_of(until_ns, until), CLOCK_MONOTONIC);
  return r < 0 ? -errno : 0;
}

bool register_barrier() noexcept {
  return ::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

bool barrier_all() noexcept {
  return ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
}

}  // namespace ipcbuf::platform
