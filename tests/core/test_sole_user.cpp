// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <initializer_list>
#include <thread>
#include <vector>

#include "check.hpp"
#include "ipcbuf/sole_user.hpp"

namespace {

using namespace ipcbuf;

const bool kAsymmetric = platform::register_barrier();
constexpr std::uint32_t kMe = 7;

struct Counted {
  SoleUser<> user;
  std::uint64_t count = 0;  // not atomic: the thread sanitizer sees what the words do not order

  bool step(bool asymmetric) {
    if (!user.enter(thread_mark(), kMe, asymmetric)) {
      std::this_thread::yield();
      return false;
    }
    ++count;
    user.leave();
    return true;
  }
};

TEST(one_thread_enters_and_leaves_as_often_as_it_likes) {
  for (const bool asymmetric : {false, kAsymmetric}) {
    Counted c;
    for (int i = 0; i < 1000; ++i) CHECK(c.step(asymmetric));
    CHECK_EQ(1000U, c.count);
  }
}

TEST(nobody_enters_while_somebody_is_inside) {
  for (const bool asymmetric : {false, kAsymmetric}) {
    SoleUser<> user;
    for (int turn = 0; turn < 3; ++turn) {  // first by the store, then by compare-and-swap
      CHECK(user.enter(thread_mark(), kMe, asymmetric));
      CHECK(!user.enter(thread_mark(), kMe, asymmetric));
      std::thread([&] { CHECK(!user.enter(thread_mark(), kMe, asymmetric)); }).join();
      user.leave();
    }
    std::thread([&] {
      CHECK(user.enter(thread_mark(), kMe, asymmetric));
      user.leave();
    }).join();
  }
}

TEST(what_a_fork_copied_is_of_nobody) {
  SoleUser<> user;
  CHECK(user.enter(thread_mark(), kMe, kAsymmetric));
  CHECK(user.enter(thread_mark(), kMe + 1, kAsymmetric));  // the child's token
  user.leave();
}

TEST(threads_never_are_inside_together) {
  for (int round = 0; round < 40; ++round) {
    Counted c;
    std::atomic<int> ready{0};
    std::atomic<std::uint64_t> done{0};
    const auto run = [&] {
      ready.fetch_add(1);
      while (ready.load() < 3) std::this_thread::yield();
      for (int i = 0; i < 500;) i += c.step(kAsymmetric) ? 1 : 0;
      done.fetch_add(500);
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back(run);
    for (auto& t : threads) t.join();
    CHECK_EQ(done.load(), c.count);
  }
}

TEST(who_waits_until_all_have_left_sees_what_they_did) {
  for (int round = 0; round < 40; ++round) {
    SoleUser<> user;
    std::atomic<bool> closed{false};
    std::uint64_t inside = 0;
    std::atomic<int> begun{0};
    std::thread worker([&] {
      for (;;) {
        if (!user.enter(thread_mark(), kMe, kAsymmetric)) continue;
        const bool over = closed;  // as an endpoint does (E1)
        if (!over) ++inside;
        user.leave();
        begun = 1;
        if (over) return;
        std::this_thread::yield();
      }
    });
    while (begun == 0) std::this_thread::yield();
    closed = true;
    user.wait_until_left(thread_mark(), kMe);
    const std::uint64_t then = inside;  // nobody changes it any more
    worker.join();
    CHECK_EQ(then, inside);
  }
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
