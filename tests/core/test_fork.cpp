// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_fork.cpp - fork.hpp: what a child has, with handlers and without.
#include <sys/syscall.h>

#include "fixture.hpp"
#include "ipcbuf/fork.hpp"

namespace {

using namespace fixture;

TEST(a_child_has_a_seat_of_its_own) {
  const auto s = make_segment();
  const Token parent = s->token();
  const pid_t pid = check::in_child([&] {
    CHECK(s->token() != 0);
    CHECK(s->token() != parent);
    CHECK(!s->is_dead(parent));
    CHECK(!s->is_dead(s->token()));
    CHECK_EQ(2U, sound(*s).processes);
  });
  CHECK_EQ(0, check::end_of(pid));
  CHECK_EQ(parent, s->token());
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(1U, sound(*s).processes);
}

TEST(a_child_keeps_the_ends_open_that_its_parent_lets_go) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  int go[2];
  CHECK_EQ(0, ::pipe(go));
  const pid_t pid = check::in_child([&] {
    char c = 0;
    (void)!::read(go[0], &c, 1);
    CHECK_EQ(Status::kOk, send_number(pair.tx, 5));
  });
  pair.tx.close();
  (void)!::write(go[1], "x", 1);
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, receive_number(pair.rx, number));
  CHECK_EQ(5U, number);
  CHECK_EQ(0, check::end_of(pid));
  (void)reap_all(*s);
  CHECK_EQ(Status::kEnded, receive_number(pair.rx, number));
  ::close(go[0]), ::close(go[1]);
}

TEST(a_child_goes_on_when_its_parent_is_killed) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const pid_t pid = check::in_child([&] {
    const pid_t grandchild = ::fork();
    if (grandchild == 0) {
      ::alarm(60);
      ::usleep(20'000);
      (void)send_number(pair.tx, reap_all(*s) == 1 ? 1U : 2U);
      ::_exit(0);
    }
    ::kill(::getpid(), SIGKILL);
  });
  CHECK_EQ(-SIGKILL, check::end_of(pid));
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, receive_number(pair.rx, number));
  CHECK(number == 1 || number == 2);  // 2 if we were quicker
}

TEST(a_view_alive_at_a_fork_is_shared_until_both_drop_it) {
  const auto s = make_segment();
  LiveView view;
  view.block = allocate(*s, 3000);
  std::memset(s->payload(view.block), 7, 3000);
  s->add_view(view);
  int go[2];
  CHECK_EQ(0, ::pipe(go));
  const pid_t pid = check::in_child([&] {
    char c = 0;
    (void)!::read(go[0], &c, 1);
    CHECK_EQ(7, static_cast<int>(*s->payload(view.block)));
    CHECK_EQ(Status::kOk, drop_block(*s, view.block));
  });
  CHECK_EQ(1U, sound(*s).shared_blocks);
  s->remove_view(view);
  CHECK_EQ(Status::kOk, drop_block(*s, view.block));
  CHECK_EQ(1U, sound(*s).shared_blocks);
  (void)!::write(go[1], "x", 1);
  CHECK_EQ(0, check::end_of(pid));
  const Census census = sound(*s);
  CHECK_EQ(0U, census.shared_blocks);
  CHECK_EQ(0U, census.entries);
  (void)reap_all(*s);
  ::close(go[0]), ::close(go[1]);
}

TEST(the_share_of_a_killed_child_is_dropped) {
  const auto s = make_segment();
  LiveView view;
  view.block = allocate(*s, 3000);
  s->add_view(view);
  for (int i = 0; i < 10; ++i) {
    const pid_t pid = check::in_child([] {
      for (;;) ::pause();
    });
    (void)check::kill_and_wait(pid);
  }
  (void)reap_all(*s);
  CHECK_EQ(1U, sound(*s).shared_blocks);
  s->remove_view(view);
  CHECK_EQ(Status::kOk, drop_block(*s, view.block));
  CHECK_EQ(0U, sound(*s).shared_blocks);
  CHECK_EQ(0U, sound(*s).entries);
}

TEST(a_child_of_a_raw_clone_takes_a_seat_at_its_first_call) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const Token parent = s->token();
  std::fflush(nullptr);
  const long pid = ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) {
    ::alarm(60);
    check::failures = 0;
    CHECK(s->token() != parent);
    const std::uint64_t at = allocate(*s, 100);
    CHECK_EQ(Status::kOk, free_block(*s, at));
    CHECK_EQ(Status::kOk, send_number(pair.tx, s->token()));
    ::_exit(check::failures == 0 ? 0 : 1);
  }
  CHECK_EQ(0, check::end_of(static_cast<pid_t>(pid)));
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, receive_number(pair.rx, number));
  CHECK(number != parent);
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(parent, s->token());
  (void)sound(*s);
}

TEST(forks_in_the_midst_of_work_harm_neither_side) {
  if (check::kThreadSanitizer) return;  // it cannot follow a fork of a process with threads
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      check::Random random{t};
      Failure why;
      Incoming in;
      while (!stop) {
        const std::uint64_t at = allocate(*s, 1 + random.below(3000));
        Outgoing out = message(&t, sizeof t);
        out.block_count = 1;
        out.blocks[0] = {at, 1};
        CHECK_EQ(Status::kOk, pair.tx.try_send(out, platform::kForever, why));
        if (pair.rx.try_receive(in, platform::kForever) == Status::kOk && in.block_count == 1)
          CHECK_EQ(Status::kOk, free_block(*s, in.blocks[0].offset));
      }
    });
  const int forks = check::kSanitized ? 20 : 200;
  for (int i = 0; i < forks; ++i) {
    const pid_t pid = check::in_child([&] {
      Failure why;
      Incoming in;
      CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 5000)));
      CHECK_EQ(Status::kOk, pair.tx.try_send(message("x", 1), platform::kForever, why));
      if (pair.rx.try_receive(in, platform::kForever) == Status::kOk && in.block_count == 1)
        CHECK_EQ(Status::kOk, free_block(*s, in.blocks[0].offset));
      ::_exit(check::failures == 0 ? 0 : 1);
    });
    CHECK_EQ(0, check::end_of(pid));
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  (void)reap_all(*s);
  Incoming in;
  while (pair.rx.try_receive(in, platform::kForever) == Status::kOk)
    for (std::uint32_t b = 0; b < in.block_count; ++b)
      CHECK_EQ(Status::kOk, free_block(*s, in.blocks[b].offset));
  ThreadHeap::of(*s).trim();
  const Census census = sound(*s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(1U, census.slabs);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
