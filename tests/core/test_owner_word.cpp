// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_owner_word.cpp - owner_word.hpp: exclusion, waiting, and take-over from the dead only.
#include <sys/mman.h>

#include <thread>
#include <vector>

#include "check.hpp"
#include "ipcbuf/owner_word.hpp"

namespace {

using namespace ipcbuf;

constexpr std::int64_t kSecond = 1'000'000'000;

struct Word {
  Word() { word.reset(); }
  OwnerWord<> word;
};
bool nobody_is_dead(std::uint32_t) { return false; }
void no_recovery() { check::fail(__FILE__, __LINE__, "recovered without a death"); }

TEST(one_process_at_a_time) {
  Word w;

  CHECK(w.word.try_acquire(1));
  CHECK(!w.word.try_acquire(2));
  CHECK_EQ(1U, w.word.owner());
  w.word.release();
  CHECK_EQ(0U, w.word.owner());
  CHECK(w.word.try_acquire(2));
}

TEST(threads_exclude_each_other) {
  Word w;
  std::uint64_t plain = 0;  // a race here is what the thread sanitizer would see
  constexpr int kThreads = 4;
  const int rounds = check::kSanitized ? 2000 : 50'000;
  std::vector<std::thread> threads;
  for (std::uint32_t t = 1; t <= kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds; ++i) {
        if (!w.word.acquire(t, platform::kForever, nobody_is_dead, no_recovery)) return;
        ++plain;
        w.word.release();
      }
    });
  for (auto& thread : threads) thread.join();

  CHECK_EQ(static_cast<std::uint64_t>(kThreads) * rounds, plain);
  CHECK_EQ(0U, w.word.owner());
}

TEST(a_wait_ends_at_its_deadline) {
  Word w;
  CHECK(w.word.try_acquire(1));
  const std::int64_t begin = platform::monotonic_ns();

  CHECK(!w.word.acquire(2, begin + 20'000'000, nobody_is_dead, no_recovery));
  CHECK(platform::monotonic_ns() - begin >= 20'000'000);
  CHECK_EQ(1U, w.word.owner());
}

TEST(a_release_wakes_who_sleeps) {
  Word w;
  CHECK(w.word.try_acquire(1));
  std::atomic<bool> inside{false};
  std::thread waiter([&] {
    CHECK(w.word.acquire(2, platform::kForever, nobody_is_dead, no_recovery));
    inside = true;
    w.word.release();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(3));  // most likely it sleeps by now
  w.word.release();
  waiter.join();

  CHECK(inside);
}

TEST(the_dead_owners_taker_recovers_before_it_is_inside) {
  Word w;
  CHECK(w.word.try_acquire(1));
  int recovered = 0;
  std::uint32_t owner_seen = 0;

  CHECK(w.word.acquire(
      2, platform::kForever, [](std::uint32_t t) { return t == 1; },
      [&] { ++recovered, owner_seen = w.word.owner(); }));
  CHECK_EQ(1, recovered);
  CHECK_EQ(2U, owner_seen);
  w.word.release();
}

TEST(a_slow_owner_is_never_robbed) {
  Word w;
  CHECK(w.word.try_acquire(1));
  int asked = 0;

  CHECK(!w.word.acquire(
      2, platform::monotonic_ns() + kSecond / 4,
      [&](std::uint32_t) {
        ++asked;
        return false;
      },
      no_recovery));
  CHECK(asked > 0);
  CHECK_EQ(1U, w.word.owner());
}

TEST(of_many_takers_one_recovers) {
  Word w;
  CHECK(w.word.try_acquire(99));
  std::atomic<int> recovered{0};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 1; t <= 4; ++t)
    threads.emplace_back([&, t] {
      CHECK(w.word.acquire(
          t, platform::kForever, [](std::uint32_t token) { return token == 99; },
          [&] { ++recovered; }));
      w.word.release();
    });
  for (auto& thread : threads) thread.join();

  CHECK_EQ(1, recovered.load());
}

TEST(a_killed_owner_is_taken_over_by_another_process) {
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* w = new (page) Word;
  const pid_t pid = check::in_child([&] {
    if (!w->word.try_acquire(1)) ::_exit(2);
    for (;;) ::pause();
  });
  while (w->word.owner() != 1) platform::cpu_pause();
  std::atomic<bool> dead{false};
  std::thread killer([&] {
    (void)check::kill_and_wait(pid);
    dead = true;
  });
  bool recovered = false;

  CHECK(w->word.acquire(
      2, platform::monotonic_ns() + 20 * kSecond, [&](std::uint32_t) { return dead.load(); },
      [&] { recovered = true; }));
  CHECK(recovered);
  killer.join();
  ::munmap(page, 4096);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
