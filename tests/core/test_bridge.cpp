// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_bridge.cpp - bridge.hpp and wait_set.hpp: descriptors that read ready exactly while ends
// are, and one wait at many ends.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "fixture.hpp"
#include "ipcbuf/bridge.hpp"
#include "ipcbuf/wait_set.hpp"

namespace {

using namespace fixture;

constexpr std::int64_t kPatience = 60 * kSecond;
constexpr std::int64_t kMoment = 30'000'000;

/// Whether the descriptor gets readable within `ns`.
bool reads_ready(int fd, std::int64_t ns = kPatience) {
  platform::FdEvents events;
  return platform::poll_fd(fd, platform::monotonic_ns() + ns, events) > 0 && events.readable;
}

int descriptor_of(Endpoint& end) {
  Failure why;
  int fd = -1;
  CHECK_EQ(Status::kOk, Bridge::descriptor_of(end, fd, why));
  return fd;
}

Status receive_now(ReceiverEnd& rx) {
  Incoming m;
  return rx.try_receive(m, platform::monotonic_ns() + kPatience);
}

Status wait_any(WaitSet& set, std::int64_t ns = kPatience) {
  const std::int64_t until = platform::monotonic_ns() + ns;
  Failure why;
  Status status;
  while ((status = set.slice(until, why)) == Status::kSlice) {
  }
  return status;
}

TEST(a_receivers_descriptor_reads_ready_exactly_while_messages_are_there) {
  auto s = make_segment();
  Pair p(*s, {});
  const int fd = descriptor_of(p.rx);
  CHECK_EQ(fd, descriptor_of(p.rx));
  for (std::uint64_t round = 0; round < 50; ++round) {
    CHECK(!reads_ready(fd, 0));
    CHECK_EQ(Status::kOk, send_number(p.tx, round));
    CHECK_EQ(Status::kOk, send_number(p.tx, round));
    CHECK(reads_ready(fd));
    CHECK_EQ(Status::kOk, receive_now(p.rx));
    CHECK(reads_ready(fd, 0));  // one is left
    CHECK_EQ(Status::kOk, receive_now(p.rx));
  }
  CHECK_EQ(Status::kEmpty, receive_now(p.rx));
  CHECK(!reads_ready(fd, kMoment));
  p.tx.close();
  CHECK(reads_ready(fd));  // the end
  p.rx.close();
  CHECK(reads_ready(fd, 0));  // whoever waits shall find out
}

TEST(a_senders_descriptor_reads_ready_while_what_it_refused_has_room) {
  auto s = make_segment();
  ChannelOptions options;
  options.max_bytes = 4096;
  Pair p(*s, options);
  const int fd = descriptor_of(p.tx);
  CHECK(reads_ready(fd, 0));
  char bytes[1500] = {};
  const Outgoing m = message(bytes, sizeof bytes);
  Failure why;
  int sent = 0;
  Status status;
  while ((status = p.tx.try_send(m, 0, why)) == Status::kOk) ++sent;
  CHECK_EQ(Status::kFull, status);
  CHECK_EQ(2, sent);
  CHECK(!reads_ready(fd, kMoment));  // although a small one would fit
  CHECK_EQ(Status::kOk, receive_now(p.rx));
  CHECK(reads_ready(fd));
  CHECK_EQ(Status::kOk, p.tx.try_send(m, 0, why));
  CHECK_EQ(Status::kFull, p.tx.try_send(m, 0, why));
  CHECK(!reads_ready(fd, 0));
  p.rx.close();
  CHECK(reads_ready(fd));
  p.tx.close();
}

/// Every message of many senders is announced to who only polls: none is missed while rings and
/// receives cross in all ways.
void nothing_is_missed() {
  auto s = make_segment();
  constexpr std::uint64_t kSenders = 3;
  const std::uint64_t each = check::kSanitized ? 300 : 2000;
  Pair p(*s, shared_ends());
  const int fd = descriptor_of(p.rx);
  std::vector<std::thread> senders;
  for (std::uint64_t t = 0; t < kSenders; ++t) {
    senders.emplace_back([&, t] {
      check::Random random{t};
      for (std::uint64_t i = 0; i < each; ++i) {
        CHECK_EQ(Status::kOk, send_number(p.tx, i));
        if (random.below(4) == 0) std::this_thread::yield();
        if (random.below(50) == 0) ::usleep(200);
      }
    });
  }
  std::uint64_t got = 0;
  while (got < kSenders * each) {
    if (!reads_ready(fd)) {
      CHECK(!"a message was missed");
      break;
    }
    while (receive_now(p.rx) == Status::kOk) ++got;
  }
  for (auto& t : senders) t.join();
  CHECK_EQ(kSenders * each, got);
  p.tx.close(), p.rx.close();
}
TEST(nothing_is_missed_by_who_polls) { nothing_is_missed(); }

/// One that polls and never takes must not swallow the rings of one that sleeps on the futex.
TEST(a_ring_is_passed_on_to_a_real_sleeper) {
  auto s = make_segment();
  Pair p(*s, shared_ends());
  ReceiverEnd watcher(*s, p.id);
  CHECK_EQ(Status::kOk, open_channel(*s, p.id, End::kReceiver, 0));
  const int fd = descriptor_of(watcher);
  const int rounds = check::kSanitized ? 50 : 200;
  std::int64_t waited = 0;
  for (int i = 0; i < rounds; ++i) {
    std::thread sleeper([&] {
      std::uint64_t number = 0;
      CHECK_EQ(Status::kOk, receive_number(p.rx, number));
    });
    while ((s->channel(index_of(p.id)).data.word.load() & kBellWaiting) == 0)
      std::this_thread::yield();
    const std::int64_t begin = platform::monotonic_ns();
    CHECK_EQ(Status::kOk, send_number(p.tx, 1));
    sleeper.join();
    waited += platform::monotonic_ns() - begin;
    CHECK_EQ(Status::kEmpty, receive_now(watcher));
  }
  // A swallowed ring costs a slice. On a busy machine others take time too, hence the mean.
  CHECK(waited / rounds < 15'000'000);
  (void)fd;
  watcher.close(), p.tx.close(), p.rx.close();
}

TEST(ends_may_be_closed_and_asked_again_while_they_are_watched) {
  auto s = make_segment();
  for (int i = 0; i < (check::kSanitized ? 50 : 300); ++i) {
    Pair p(*s, shared_ends());
    (void)descriptor_of(p.rx), (void)descriptor_of(p.tx);
    std::thread closer([&] { p.rx.close(); });
    for (int k = 0; k < 20; ++k) {
      Failure why;
      if (p.tx.try_send(message(&k, sizeof k), platform::monotonic_ns() + kPatience, why) !=
          Status::kOk)
        break;
    }
    closer.join();
    p.tx.close();
    Failure why;
    int fd = -1;
    CHECK_EQ(Status::kClosed, Bridge::descriptor_of(p.rx, fd, why));
  }
  (void)sound(*s);
}

TEST(a_dead_peer_makes_a_descriptor_ready) {
  auto s = make_segment();
  Pair p(*s, {});
  const pid_t child = check::in_child([&] {
    CHECK_EQ(Status::kOk, send_number(p.tx, 1));
    for (;;) ::pause();
  });
  const int fd = descriptor_of(p.rx);
  CHECK(reads_ready(fd));
  CHECK_EQ(Status::kOk, receive_now(p.rx));
  CHECK(!reads_ready(fd, 0));
  CHECK_EQ(-SIGKILL, check::kill_and_wait(child));
  CHECK(reads_ready(fd));
  std::uint64_t number = 0;
  CHECK_EQ(Status::kBroken, receive_number(p.rx, number));
  p.tx.close(), p.rx.close();
}

TEST(a_forked_child_has_descriptors_of_its_own_under_the_same_numbers) {
  if (check::kThreadSanitizer) return;  // it starts no threads in a forked child
  auto s = make_segment();
  Pair to_child(*s, shared_ends());
  Pair to_parent(*s, shared_ends());
  const int fd = descriptor_of(to_child.rx);
  const pid_t child = check::in_child([&] {
    CHECK(reads_ready(fd, 0));  // perhaps for nothing
    CHECK_EQ(fd, descriptor_of(to_child.rx));
    for (std::uint64_t i = 0; i < 20; ++i) {
      while (receive_now(to_child.rx) != Status::kOk) CHECK(reads_ready(fd));
      CHECK_EQ(Status::kOk, send_number(to_parent.tx, i));
    }
  });
  std::uint64_t number = 0;
  for (std::uint64_t i = 0; i < 20; ++i) {
    CHECK_EQ(Status::kOk, send_number(to_child.tx, i));
    CHECK_EQ(Status::kOk, receive_number(to_parent.rx, number));
  }
  CHECK_EQ(0, check::end_of(child));
  CHECK_EQ(Status::kEmpty, receive_now(to_child.rx));
  CHECK(!reads_ready(fd, kMoment));  // the child's readiness is not ours
  CHECK_EQ(Status::kOk, send_number(to_child.tx, 1));
  CHECK(reads_ready(fd));
  for (Pair* p : {&to_child, &to_parent}) p->tx.close(), p->rx.close();
}

TEST(forks_while_the_bridge_works_leave_it_sound_on_both_sides) {
  if (check::kThreadSanitizer) return;  // it starts no threads in a forked child
  auto s = make_segment();
  Pair p(*s, shared_ends());
  const int fd = descriptor_of(p.rx);
  std::atomic<bool> stop{false};
  std::thread traffic([&] {
    while (!stop) {
      CHECK_EQ(Status::kOk, send_number(p.tx, 1));
      while (receive_now(p.rx) == Status::kOk) {
      }
    }
  });
  for (int i = 0; i < (check::kSanitized ? 5 : 20); ++i) {
    const pid_t child = check::in_child([&] {
      Pair own(*s, shared_ends());
      const int mine = descriptor_of(own.rx);
      CHECK_EQ(Status::kOk, send_number(own.tx, 1));
      CHECK(reads_ready(mine));
      CHECK(reads_ready(fd, 0));
      own.tx.close(), own.rx.close();
    });
    CHECK_EQ(0, check::end_of(child));
  }
  stop = true;
  traffic.join();
  p.tx.close(), p.rx.close();
}

// ---- many at once ----

struct Many {
  Many(Segment& s, std::size_t n, const ChannelOptions& options = {}) {
    for (std::size_t i = 0; i < n; ++i) {
      pairs.push_back(std::make_unique<Pair>(s, options));
      receivers.push_back(&pairs.back()->rx);
    }
  }
  ~Many() {
    for (auto& p : pairs) p->tx.close(), p->rx.close();
  }
  std::vector<std::unique_ptr<Pair>> pairs;
  std::vector<Endpoint*> receivers;
};

void wait_at(std::size_t n, const std::vector<int>& fds = {}) {
  auto s = make_segment();
  Many many(*s, n);
  {
    WaitSet set(many.receivers, fds);
    CHECK_EQ(Status::kEmpty, wait_any(set, kMoment));
  }
  check::Random random{n};
  for (int round = 0; round < (check::kSanitized ? 10 : 50); ++round) {
    const std::size_t which = random.below(n);
    std::thread sender([&] {
      if (round % 2 == 0) ::usleep(1000);
      CHECK_EQ(Status::kOk, send_number(many.pairs[which]->tx, which));
    });
    WaitSet set(many.receivers, fds);
    CHECK_EQ(Status::kOk, wait_any(set));
    for (std::size_t i = 0; i < n; ++i) CHECK_EQ(i == which, set.is_end_ready(i));
    sender.join();
    CHECK_EQ(Status::kOk, receive_now(many.pairs[which]->rx));
  }
}
TEST(one_end_is_waited_at) { wait_at(1); }
TEST(as_many_as_one_call_takes_are_waited_at) { wait_at(128); }
TEST(more_ends_than_one_call_takes_are_waited_at) { wait_at(300); }
TEST(ends_and_descriptors_are_waited_at_together) {
  int pipe[2];
  CHECK_EQ(0, ::pipe2(pipe, O_CLOEXEC));
  wait_at(5, {pipe[0]});
  auto s = make_segment();
  Many many(*s, 2);
  std::thread writer([&] { CHECK_EQ(1, ::write(pipe[1], "x", 1)); });
  WaitSet set(many.receivers, {pipe[0]});
  CHECK_EQ(Status::kOk, wait_any(set));
  CHECK(set.is_fd_ready(0) && !set.is_end_ready(0) && !set.is_end_ready(1));
  writer.join();
  ::close(pipe[0]), ::close(pipe[1]);
}

/// Waiters that take nothing themselves, and one that does: no ring is lost between them.
TEST(waits_at_many_ends_do_not_swallow_each_others_rings) {
  auto s = make_segment();
  Many many(*s, 3, shared_ends());
  const std::uint64_t n = check::kSanitized ? 300 : 3000;
  std::atomic<std::uint64_t> got{0};
  std::vector<std::thread> receivers;
  for (int t = 0; t < 3; ++t) {
    receivers.emplace_back([&] {
      while (got < n) {
        WaitSet set(many.receivers, {});
        if (wait_any(set, kSecond / 5) != Status::kOk) continue;
        for (auto& p : many.pairs)
          if (receive_now(p->rx) == Status::kOk) ++got;
      }
    });
  }
  check::Random random{9};
  for (std::uint64_t i = 0; i < n; ++i) {
    CHECK_EQ(Status::kOk, send_number(many.pairs[random.below(3)]->tx, i));
    if (random.below(8) == 0) ::usleep(50);
  }
  for (auto& t : receivers) t.join();
  CHECK_EQ(n, got.load());
}

TEST(an_end_closed_by_another_thread_ends_the_wait) {
  for (const std::size_t n : {std::size_t{3}, std::size_t{200}}) {
    auto s = make_segment();
    Many many(*s, n, shared_ends());
    std::thread closer([&] {
      ::usleep(2000);
      many.pairs[n - 1]->rx.close();
    });
    WaitSet set(many.receivers, {});
    CHECK_EQ(Status::kClosed, wait_any(set));
    closer.join();
  }
}

TEST(a_dead_peer_among_many_ends_the_wait) {
  for (const std::size_t n : {std::size_t{3}, std::size_t{200}}) {
    auto s = make_segment();
    Many many(*s, n);
    const pid_t child = check::in_child([&] {
      CHECK_EQ(Status::kOk, send_number(many.pairs[1]->tx, 1));
      for (;;) ::pause();
    });
    WaitSet first(many.receivers, {});
    CHECK_EQ(Status::kOk, wait_any(first));
    CHECK_EQ(Status::kOk, receive_now(many.pairs[1]->rx));
    CHECK_EQ(-SIGKILL, check::kill_and_wait(child));
    WaitSet set(many.receivers, {});
    CHECK_EQ(Status::kOk, wait_any(set));
    for (std::size_t i = 0; i < n; ++i) CHECK_EQ(i == 1, set.is_end_ready(i));
  }
}

TEST(a_closed_descriptor_is_refused) {
  auto s = make_segment();
  Many many(*s, 1);
  WaitSet set(many.receivers, {9999});
  Failure why;
  CHECK_EQ(Status::kSystem, set.slice(0, why));
  CHECK_EQ(EBADF, why.sys_errno);
}

TEST(no_descriptor_left_is_an_error_with_its_number) {
  const pid_t child = check::in_child([] {
    auto s = make_segment();
    Pair p(*s, {});
    const rlimit none{4, 4};
    CHECK_EQ(0, ::setrlimit(RLIMIT_NOFILE, &none));
    Failure why;
    int fd = -1;
    CHECK_EQ(Status::kSystem, Bridge::descriptor_of(p.rx, fd, why));
    CHECK_EQ(EMFILE, why.sys_errno);
    CHECK_EQ(-1, fd);
    p.tx.close(), p.rx.close();
  });
  CHECK_EQ(0, check::end_of(child));
}

// ---- without futex_waitv ----

/// From here on the kernel answers `error` to futex_waitv.
void forbid_waitv(int error) {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 449},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog program{4, code};
  CHECK_EQ(0, ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  CHECK_EQ(0L,
           ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
}

}  // namespace

int main(int n, char** v) {
  if (n > 1 && std::strcmp(v[1], "--forbidden") == 0) {  // see below
    forbid_waitv(ENOSYS);
    CHECK(!platform::has_futex_wait_any());
    check::watchdog(120);
    nothing_is_missed();
    wait_at(1), wait_at(20);
    return check::failures == 0 ? 0 : 1;
  }
  int failed = check::run(n, v);
  check::current = "without futex_waitv";
  // The kernel's answer is asked once a process: in a fresh one from the start,
  const pid_t fresh = ::fork();
  if (fresh == 0) {
    ::execl("/proc/self/exe", v[0], "--forbidden", nullptr);
    ::_exit(127);
  }
  CHECK_EQ(0, check::end_of(fresh));
  // and in one that has learnt otherwise: a filter that comes late.
  if (platform::has_futex_wait_any()) {
    forbid_waitv(EPERM);
    check::watchdog(120);
    nothing_is_missed();
    wait_at(20);
  }
  return failed | (check::failures == 0 ? 0 : 1);
}
