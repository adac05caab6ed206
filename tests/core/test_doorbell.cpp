// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_doorbell.cpp - doorbell.hpp: no wake-up is lost, and flags do not get into each other's way.
#include <thread>

#include "check.hpp"
#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/spin_claim.hpp"

namespace {

using namespace ipcbuf;

constexpr std::int64_t kSecond = 1'000'000'000;

/// One side counts up, the other sleeps until it sees each number. Without slices: a lost
/// wake-up would end in the time-out of `sleep`.
void nothing_is_lost(bool asymmetric) {
  BellRow row{};
  std::atomic<std::uint32_t> published{0};
  std::atomic<std::uint32_t> seen{0};
  const std::uint32_t n = check::kSanitized ? 2000 : 20'000;
  std::atomic<int> late{0};
  std::thread sleeper([&] {
    Doorbell<> bell(row, asymmetric);
    for (std::uint32_t i = 1; i <= n; ++i) {
      while (published.load(std::memory_order_acquire) < i) {
        const std::uint32_t word = bell.announce();
        if (published.load(std::memory_order_acquire) >= i) break;
        const std::int64_t until = platform::monotonic_ns() + 5 * kSecond;
        bell.sleep(word, until);
        if (platform::monotonic_ns() >= until) ++late;
      }
      seen.store(i, std::memory_order_release);
    }
  });
  Doorbell<> bell(row, asymmetric);
  for (std::uint32_t i = 1; i <= n; ++i) {
    while (seen.load(std::memory_order_acquire) < i - 1) platform::cpu_pause();
    published.store(i, std::memory_order_release);
    bell.ring_futex();
  }
  sleeper.join();

  CHECK_EQ(0, late.load());
}

TEST(no_wake_up_is_lost_with_a_fence_at_the_publisher) { nothing_is_lost(false); }

TEST(no_wake_up_is_lost_with_a_barrier_at_the_sleeper) {
  if (!platform::register_barrier()) return;  // a kernel without it never takes this path
  nothing_is_lost(true);
}

TEST(a_wake_clears_the_flag_and_only_the_flag) {
  BellRow row{};
  Doorbell<> bell(row, false);
  bell.arm(), bell.set_token();
  const std::uint32_t word = bell.announce();
  CHECK_EQ(kBellWaiting | kBellArmed | kBellToken, word & 7);

  bell.wake();

  CHECK_EQ(kBellArmed | kBellToken, row.word.load() & 7);
  CHECK(row.word.load() >> 3 != word >> 3);
}

TEST(a_token_is_set_and_cleared) {
  BellRow row{};
  Doorbell<> bell(row, false);

  bell.set_token();
  CHECK_EQ(kBellToken, row.word.load() & 7);
  bell.clear_token();
  CHECK_EQ(0U, row.word.load() & 7);
}

TEST(one_waiter_spins_and_a_dead_one_gives_way) {
  EndRow row{};
  SpinClaim claim(row);

  CHECK(claim.take(1, 100, 200));
  CHECK(!claim.take(2, 150, 250));
  CHECK(claim.take(2, 201, 300));
  claim.end();
  CHECK(claim.take(3, 202, 300));
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
