// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_fork.cpp - fork.hpp: what a child has, with handlers and without.
#include <fcntl.h>
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

/// Who looks from another pid namespace has nothing but the life byte.
TEST(the_life_byte_of_the_dead_is_free_although_their_child_lives) {
  struct Report {
    int fd;
    Token token;
    pid_t child;
  } report{};
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    const auto own = make_segment();
    report = {own->fd(), own->token(), 0};
    if (::fork() == 0) {
      ::alarm(60);
      report.child = ::getpid();
      (void)!::write(ready[1], &report, sizeof report);
    }
    for (;;) ::pause();
  });
  CHECK_EQ(static_cast<long>(sizeof report), ::read(ready[0], &report, sizeof report));
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", static_cast<int>(pid), report.fd);
  const int fd = ::open(path, O_RDWR | O_CLOEXEC);
  Failure why;
  const auto s = Segment::attach(fd, why);
  ::close(fd);
  CHECK(s != nullptr);
  const std::uint32_t seat = slot_of(report.token);
  CHECK_EQ(1, platform::test_life_byte(s->fd(), seat));

  CHECK_EQ(-SIGKILL, check::kill_and_wait(pid));

  CHECK_EQ(0, platform::test_life_byte(s->fd(), seat));
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(2U, sound(*s).processes);
  ::kill(report.child, SIGKILL);
  ::close(ready[0]), ::close(ready[1]);
}

TEST(who_lost_its_descriptor_keeps_its_life_byte) {
  const auto s = make_segment();
  const pid_t pid = child_that([&] {
    ::close(s->fd());
    CHECK(s->is_lost());
  });
  CHECK_EQ(1, platform::test_life_byte(s->fd(), 1));
  CHECK_EQ(0, reap_all(*s));
  (void)check::kill_and_wait(pid);
  CHECK_EQ(0, platform::test_life_byte(s->fd(), 1));
  CHECK_EQ(1, reap_all(*s));
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

/// What the child of a raw clone answers with.
enum Answer : int { kWorks = 0, kFails = 1, kRefused = 7 };

template <class Body>
pid_t raw_clone(Body&& body) {
  std::fflush(nullptr);
  const long pid = ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) {
    ::alarm(30);
    check::failures = 0;
    const int answer = body();
    ::_exit(check::failures == 0 ? answer : kFails);
  }
  return static_cast<pid_t>(pid);
}

TEST(a_child_that_was_copied_in_the_midst_of_a_change_is_refused) {
  if (check::kSanitized) return;  // nor does the sanitizer's own allocator like such a child
  const auto s = make_segment();
  Pair pair(*s, {});
  Failure why;
  LiveView view;
  view.block = allocate(*s, 100);
  s->add_view(view);
  std::atomic<int> step{0};
  std::thread holder([&] {
    const std::lock_guard lock(s->mutex());
    step = 1;
    while (step != 2) std::this_thread::yield();
  });
  while (step != 1) std::this_thread::yield();
  const pid_t pid = raw_clone([&] {
    CHECK_EQ(0U, s->token());
    CHECK(!s->is_seated());
    CHECK_EQ(Status::kTorn, s->no_seat());
    CHECK_EQ(Status::kTorn, s->health());
    CHECK_EQ(Status::kTorn, send_number(pair.tx, 1));
    std::uint64_t number = 0;
    CHECK_EQ(Status::kTorn, receive_number(pair.rx, number));
    CHECK_EQ(Status::kTorn, s->add_endpoint(pair.id, End::kSender));
    CHECK(Segment::attach(s->fd(), why) == nullptr);
    CHECK_EQ(Status::kTorn, why.status);
    CHECK(Segment::create(1U << 20, why) == nullptr);
    CHECK_EQ(Status::kTorn, why.status);
    const pid_t grandchild = check::in_child([&] { CHECK_EQ(Status::kTorn, s->health()); });
    CHECK_EQ(0, check::end_of(grandchild));
    // What it lets go of was never its own.
    s->remove_view(view);
    CHECK_EQ(Status::kTorn, drop_block(*s, view.block));
    pair.tx.close();
    pair.rx.close();
    return kRefused;
  });
  CHECK_EQ(kRefused, check::end_of(pid));
  step = 2;
  holder.join();

  s->remove_view(view);
  CHECK_EQ(Status::kOk, drop_block(*s, view.block));
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, send_number(pair.tx, 5));
  CHECK_EQ(Status::kOk, receive_number(pair.rx, number));
  CHECK_EQ(0, reap_all(*s));
  CHECK_EQ(1U, sound(*s).processes);
}

TEST(raw_clones_beside_threads_in_all_locks_work_or_are_refused) {
  if (check::kSanitized) return;
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  Pair answers(*s, shared_ends());
  const Token parent = s->token();
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  const auto repeat = [&](auto&& work) {
    threads.emplace_back([&stop, work] {
      while (!stop) work();
    });
  };
  repeat([&] {
    Failure why;
    Outgoing out = message("x", 1);
    out.block_count = 1;
    out.blocks[0] = {allocate(*s, 2000), 1};
    Incoming in;
    CHECK_EQ(Status::kOk, pair.tx.try_send(out, platform::kForever, why));
    if (pair.rx.try_receive(in, platform::kForever) == Status::kOk && in.block_count == 1)
      CHECK_EQ(Status::kOk, free_block(*s, in.blocks[0].offset));
  });
  repeat([&] {
    Pair other(*s, {});
    other.tx.close();
    other.rx.close();
  });
  repeat([&] {
    LiveView view;
    view.block = allocate(*s, 40'000);
    s->add_view(view);
    s->remove_view(view);
    CHECK_EQ(Status::kOk, drop_block(*s, view.block));
  });
  repeat([&] {
    Failure why;
    CHECK(Segment::attach(s->fd(), why) == s);
  });
  int worked = 0;
  int refused = 0;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const pid_t pid = raw_clone([&] {
      if (s->token() == 0) {
        CHECK_EQ(Status::kTorn, send_number(answers.tx, i));
        return kRefused;
      }
      CHECK(s->token() != parent);
      CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 5000)));
      CHECK_EQ(Status::kOk, send_number(answers.tx, i));
      return kWorks;
    });
    const int end = check::end_of(pid);
    CHECK(end == kWorks || end == kRefused);
    if (end != kWorks) {
      refused += end == kRefused;
      continue;
    }
    ++worked;
    std::uint64_t number = 0;
    CHECK_EQ(Status::kOk, receive_number(answers.rx, number));
    CHECK_EQ(i, number);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  std::printf("%d raw clones worked, %d were refused\n", worked, refused);
  CHECK(worked > 0);
  (void)reap_all(*s);
  Incoming in;
  while (pair.rx.try_receive(in, platform::kForever) == Status::kOk)
    for (std::uint32_t b = 0; b < in.block_count; ++b)
      CHECK_EQ(Status::kOk, free_block(*s, in.blocks[b].offset));
  const Census census = sound(*s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(2U, census.channels);
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
