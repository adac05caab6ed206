// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_system_calls.cpp - every system call of the core fails once.
//
// The calls of platform/linux are wrapped by the linker. A scenario is run with its first call
// failing, then with its second, and so on until it passes without a failure; each time in a
// process of its own, with each errno that the call is known for. Whatever fails:
//   - no signal, and nobody says that the segment is corrupted: a clear refusal, or it works;
//   - the same again, with nothing failing, works;
//   - the census finds nothing wrong, and no descriptor is left open.
//
// ctest-plain-only: AddressSanitizer makes system calls of its own.
// ctest-wrap: open openat fstat fstatat fstatfs fstatvfs fallocate fchmod fcntl mmap memfd_create
// ctest-wrap: mkdir linkat unlinkat pread read recv send write ppoll eventfd dup3 syscall getrandom
// ctest-wrap: sigaction pthread_create madvise mprotect
#include <dirent.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstdarg>
#include <initializer_list>
#include <map>
#include <set>

#include "fixture.hpp"
#include "ipcbuf/bridge.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/named.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/static_area.hpp"
#include "ipcbuf/wait_set.hpp"

struct statfs;
struct statvfs;

namespace {

/// What fails in this process: the n-th call, with one of the errors that it is known for.
struct Plan {
  int fail_at = 0;
  int variant = 0;
  int seen = 0;
};
Plan plan;
thread_local bool armed = false;  // other threads' calls are not counted: they come when they like

/// What the parent reads.
struct Report {
  bool failed_one;
  char call[24];
  int error;
};
Report* report = nullptr;

bool fails(const char* call, std::initializer_list<int> errors) {
  if (!armed || ++plan.seen != plan.fail_at) return false;
  errno = errors.begin()[static_cast<std::size_t>(plan.variant) % errors.size()];
  report->failed_one = true;
  std::strncpy(report->call, call, sizeof report->call - 1);
  report->error = errno;
  return true;
}

struct Armed {
  Armed() { armed = true; }
  ~Armed() { armed = false; }
};

}  // namespace

// ---- the calls ----

#define WRAP(result, name, parameters, arguments, ...) \
  result __real_##name parameters;                     \
  result __wrap_##name parameters {                    \
    if (fails(#name, {__VA_ARGS__})) return -1;        \
    return __real_##name arguments;                    \
  }

extern "C" {
WRAP(int, fstat, (int fd, struct stat* s), (fd, s), EIO, ENOMEM)
WRAP(int, fstatat, (int d, const char* n, struct stat* s, int f), (d, n, s, f), EACCES, ENOMEM)
WRAP(int, fstatfs, (int fd, struct statfs* s), (fd, s), ENOSYS, EIO)
WRAP(int, fstatvfs, (int fd, struct statvfs* s), (fd, s), ENOSYS, EIO)
WRAP(int, fallocate, (int fd, int m, off_t o, off_t n), (fd, m, o, n), ENOSPC, ENOMEM, EINTR, EFBIG)
WRAP(int, fchmod, (int fd, mode_t m), (fd, m), EPERM)
WRAP(int, memfd_create, (const char* n, unsigned f), (n, f), EINVAL, EMFILE, ENOMEM, ENOSYS)
WRAP(int, mkdir, (const char* p, mode_t m), (p, m), ENOSPC, EACCES, ENOENT)
WRAP(int, linkat, (int a, const char* b, int c, const char* d, int f), (a, b, c, d, f), ENOENT,
     ENOSPC, EPERM)
WRAP(int, unlinkat, (int d, const char* n, int f), (d, n, f), EACCES, EIO)
WRAP(ssize_t, pread, (int fd, void* p, std::size_t n, off_t o), (fd, p, n, o), EINTR, EIO)
WRAP(ssize_t, read, (int fd, void* p, std::size_t n), (fd, p, n), EINTR, EIO, EAGAIN)
WRAP(ssize_t, recv, (int fd, void* p, std::size_t n, int f), (fd, p, n, f), EINTR, EAGAIN)
WRAP(ssize_t, send, (int fd, const void* p, std::size_t n, int f), (fd, p, n, f), EINTR, EAGAIN,
     ENOBUFS)
WRAP(ssize_t, write, (int fd, const void* p, std::size_t n), (fd, p, n), EINTR, EAGAIN)
WRAP(int, ppoll, (pollfd * p, nfds_t n, const timespec* t, const sigset_t* s), (p, n, t, s), EINTR,
     ENOMEM)
WRAP(int, eventfd, (unsigned n, int f), (n, f), EMFILE, ENFILE, ENOMEM)
WRAP(int, dup3, (int a, int b, int f), (a, b, f), EBUSY, EMFILE)
WRAP(ssize_t, getrandom, (void* p, std::size_t n, unsigned f), (p, n, f), ENOSYS, EINTR)
WRAP(int, sigaction, (int s, const struct sigaction* a, struct sigaction* o), (s, a, o), EINVAL)
WRAP(int, madvise, (void* p, std::size_t n, int a), (p, n, a), EINVAL, ENOMEM)
WRAP(int, mprotect, (void* p, std::size_t n, int a), (p, n, a), ENOMEM, EACCES)

int __real_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int __wrap_pthread_create(pthread_t* t, const pthread_attr_t* a, void* (*body)(void*), void* x) {
  if (fails("pthread_create", {EAGAIN})) return errno;
  return __real_pthread_create(t, a, body, x);
}

void* __real_mmap(void*, std::size_t, int, int, int, off_t);
void* __wrap_mmap(void* at, std::size_t n, int protection, int flags, int fd, off_t offset) {
  if (fails("mmap", {ENOMEM, EAGAIN})) return MAP_FAILED;
  return __real_mmap(at, n, protection, flags, fd, offset);
}

int __real_open(const char*, int, ...);
int __wrap_open(const char* path, int flags, ...) {
  if (fails("open", {EMFILE, ENOENT, EACCES, ENOMEM})) return -1;
  va_list rest;
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  return __real_open(path, flags, mode);
}

int __real_openat(int, const char*, int, ...);
int __wrap_openat(int directory, const char* path, int flags, ...) {
  if (fails("openat", {EMFILE, EOPNOTSUPP, EACCES, ENOSPC})) return -1;
  va_list rest;
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  return __real_openat(directory, path, flags, mode);
}

int __real_fcntl(int, int, ...);
int __wrap_fcntl(int fd, int command, ...) {
  if (fails("fcntl", {EINVAL, ENOLCK, EMFILE})) return -1;
  va_list rest;
  va_start(rest, command);
  void* const argument = va_arg(rest, void*);
  va_end(rest);
  return __real_fcntl(fd, command, argument);
}

long __real_syscall(long, ...);
long __wrap_syscall(long number, ...) {
  bool failed = false;
  // Not ESRCH from pidfd_open: a kernel that says so of the living lies.
  if (number == SYS_pidfd_open) failed = fails("pidfd_open", {EMFILE, ENOSYS, EPERM, ENOMEM});
  if (number == SYS_membarrier) failed = fails("membarrier", {ENOSYS, EPERM});
  if (number == SYS_futex) failed = fails("futex", {EINTR, EAGAIN, ENOSYS});
  if (number == 449) failed = fails("futex_waitv", {ENOSYS, EPERM, EINTR, ENOMEM});
  if (failed) return -1;
  va_list rest;
  va_start(rest, number);
  long a[6];
  for (long& x : a) x = va_arg(rest, long);
  va_end(rest);
  return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
}

namespace {

using namespace fixture;

constexpr std::uint64_t kMiB = 1U << 20;
constexpr std::int64_t kShort = 30'000'000;

int open_descriptors() {
  int n = 0;
  DIR* stream = ::opendir("/proc/self/fd");
  while (::readdir(stream) != nullptr) ++n;
  ::closedir(stream);
  return n;
}

std::map<std::string, std::set<std::string>> reached;  // call -> scenarios

/// Runs `scenario` with each of its calls failing, in turn, until none is left.
void fail_each_call(const char* name, void (*scenario)(), int variants = 4) {
  report = static_cast<Report*>(
      __real_mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  int runs = 0;
  for (int variant = 0; variant < variants; ++variant) {
    for (int n = 1;; ++n) {
      *report = {};
      const int end = check::end_of(check::in_child([&] {
        const int before = open_descriptors();
        plan = {n, variant, 0};
        scenario();
        // The bridge's thread goes on, and may have one open at this very moment.
        for (int i = 0; i < 5000 && open_descriptors() != before; ++i) platform::pause_ms(1);
        CHECK_EQ(before, open_descriptors());
      }));
      ++runs;
      if (end != 0)
        check::fail(__FILE__, __LINE__,
                    std::string(name) + ": call " + std::to_string(n) + ", " + report->call +
                        " with errno " + std::to_string(report->error) + ": it ended with " +
                        std::to_string(end));
      if (!report->failed_one) break;
      reached[report->call].insert(name);
      if (n > 500) {
        check::fail(__FILE__, __LINE__, std::string(name) + " makes too many calls");
        break;
      }
    }
  }
  ::munmap(report, 4096);
  std::printf("  %s: %d runs\n", name, runs);
}

/// A refusal that a caller can understand.
void check_refusal(const Failure& why) {
  CHECK(why.status != Status::kOk && why.status != Status::kCorrupted);
  if (why.status == Status::kSystem) CHECK(why.sys_errno > 0 && why.reason[0] != 0);
}

void use(Segment& s) {
  CHECK_EQ(0U, static_cast<unsigned>(s.is_poisoned()));
  CHECK_EQ(Status::kOk, free_block(s, allocate(s, 100)));
  Pair p(s, {});
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, send_number(p.tx, 7));
  CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  CHECK_EQ(7U, number);
  p.tx.close();
  p.rx.close();
  (void)sound(s);
}

// ---- scenarios ----

void create() {
  Failure why;
  std::shared_ptr<Segment> s;
  {
    const Armed now;
    s = Segment::create(8 * kMiB, why);
  }
  if (!s) check_refusal(why);
  if (!s) s = make_segment(8 * kMiB);
  use(*s);
}

void attach() {
  auto made = make_segment(8 * kMiB);
  const int fd = platform::duplicate(made->fd());
  made.reset();  // or we would get the same again
  Failure why;
  std::shared_ptr<Segment> s;
  {
    const Armed now;
    s = Segment::attach(fd, why);
  }
  if (!s) check_refusal(why);
  if (!s) s = Segment::attach(fd, why);
  CHECK(s != nullptr);
  if (s) use(*s);
  platform::close_fd(fd);
}

void grow() {
  const auto s = make_segment(64 * kMiB);
  Failure why;
  std::uint64_t at = 0;
  Status status;
  {
    const Armed now;
    status = ThreadHeap::of(*s).allocate(20 * kMiB, at, why);
  }
  if (status != Status::kOk) check_refusal(why);
  if (status != Status::kOk) at = allocate(*s, 20 * kMiB);
  CHECK_EQ(Status::kOk, free_block(*s, at));
  {
    const Armed now;
    (void)RunHeap(*s).give_back(UINT32_MAX);
  }
  CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 30 * kMiB)));
  use(*s);
}

void wait_and_time_out() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  Incoming m;
  Wait wait;
  Status status;
  {
    const Armed now;
    const std::int64_t until = platform::monotonic_ns() + kShort;
    while ((status = p.rx.receive_slice(m, until, wait)) == Status::kSlice) {
    }
    p.rx.finish_wait(wait);
  }
  CHECK_EQ(Status::kEmpty, status);
  use(*s);
}

void wait_for_a_message() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  std::atomic<bool> asleep{false};
  std::thread sender([&] {
    while (!asleep) platform::cpu_pause();
    CHECK_EQ(Status::kOk, send_number(p.tx, 5));
  });
  std::uint64_t number = 0;
  {
    const Armed now;
    asleep = true;
    CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  }
  sender.join();
  CHECK_EQ(5U, number);
  use(*s);
}

void wake_a_sleeper() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  std::uint64_t number = 0;
  std::thread receiver([&] { CHECK_EQ(Status::kOk, receive_number(p.rx, number)); });
  while ((Atomics::load_acquire(s->channel(index_of(p.id)).data.word) & kBellWaiting) == 0)
    platform::cpu_pause();
  {
    const Armed now;
    CHECK_EQ(Status::kOk, send_number(p.tx, 6));
  }
  receiver.join();
  CHECK_EQ(6U, number);
  use(*s);
}

template <BellKind kKind>
void ring_a_descriptor() {
  const auto s = make_segment(8 * kMiB);
  ChannelOptions options = shared_ends();
  options.bell = kKind;
  Pair p(*s, options);
  int fds[2] = {-1, -1};
  if (kKind == BellKind::kSocket) {
    CHECK_EQ(0, ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    p.tx.set_bell_fd(fds[0]);
    p.rx.set_bell_fd(fds[1]);
  } else {
    fds[0] = platform::make_eventfd(0);
    p.tx.set_bell_fd(fds[0]);
    p.rx.set_bell_fd(fds[0]);
  }
  std::uint64_t number = 0;
  {
    const Armed now;
    (void)p.rx.arm();
    for (std::uint64_t i = 0; i < 3; ++i) {
      CHECK_EQ(Status::kOk, send_number(p.tx, i));
      CHECK_EQ(Status::kOk, receive_number(p.rx, number));
      CHECK_EQ(i, number);
    }
    const std::int64_t until = platform::monotonic_ns() + kShort;
    Wait wait;
    Status status;
    while ((status = p.rx.poll_slice(until, wait)) == Status::kSlice) {
    }
    p.rx.finish_wait(wait);
    CHECK_EQ(Status::kEmpty, status);
  }
  CHECK_EQ(Status::kOk, send_number(p.tx, 9));
  CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  p.tx.close();
  p.rx.close();
  for (const int fd : fds) platform::close_fd(fd);
  use(*s);
}

void link_rings() {
  const auto s = make_segment(64 * kMiB);
  Pair p(*s, {});
  std::uint64_t sent = 0;
  Failure why;
  {
    const Armed now;
    for (int i = 0; i < 30'000; ++i) {
      const Outgoing m = message(&sent, sizeof sent);
      const Status status = p.tx.try_send(m, platform::kForever, why);
      if (status == Status::kOk) {
        ++sent;
      } else {
        check_refusal(why);
      }
    }
  }
  CHECK(sent >= 29'999);
  std::uint64_t number = 0;
  for (std::uint64_t i = 0; i < sent; ++i) {
    CHECK_EQ(Status::kOk, receive_number(p.rx, number));
    CHECK_EQ(i, number);
  }
  p.tx.close();
  p.rx.close();
  use(*s);
}

void fork_and_talk() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  std::uint64_t number = 0;
  pid_t child = 0;
  {
    const Armed now;  // in the child, too
    child = check::in_child([&] {
      Status status = Status::kSlice;
      // Without a seat, or without its descriptor, a child says so and may try again.
      for (int tries = 0; tries < 3 && status != Status::kOk; ++tries)
        status = send_number(p.tx, 3);
      CHECK_EQ(Status::kOk, status);
    });
  }
  CHECK_EQ(0, check::end_of(child));
  CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  CHECK_EQ(3U, number);
  p.tx.close();
  p.rx.close();
  (void)reap_all(*s);
  use(*s);
}

void bury_the_dead() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  CHECK_EQ(0, check::end_of(check::in_child([&] {
             (void)allocate(*s, 5000);
             CHECK_EQ(Status::kOk, send_number(p.tx, 4));
             std::fflush(nullptr);
             ::_exit(0);
           })));
  {
    const Armed now;
    (void)reap_all(*s);
  }
  (void)reap_all(*s);
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  CHECK_EQ(4U, number);
  p.tx.close();
  p.rx.close();
  use(*s);
}

void find_the_sender_dead() {
  const auto s = make_segment(8 * kMiB);
  Pair p(*s, shared_ends());
  CHECK_EQ(0, check::end_of(check::in_child([&] { (void)send_number(p.tx, 1); })));
  p.tx.close();
  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  {
    const Armed now;
    const Status status = receive_number(p.rx, number);
    CHECK(status == Status::kEnded || status == Status::kBroken);
  }
  p.rx.close();
  use(*s);
}

void wait_at_many() {
  const auto s = make_segment(8 * kMiB);
  Pair a(*s, shared_ends());
  Pair b(*s, shared_ends());
  const int fd = platform::make_eventfd(0);
  for (const bool with_descriptor : {false, true}) {
    Failure why;
    Status status;
    {
      const Armed now;
      const std::vector<int> fds = with_descriptor ? std::vector<int>{fd} : std::vector<int>{};
      WaitSet set({&a.rx, &b.rx}, fds);
      const std::int64_t until = platform::monotonic_ns() + kShort;
      while ((status = set.slice(until, why)) == Status::kSlice) {
      }
    }
    if (status != Status::kEmpty) check_refusal(why);
    CHECK_EQ(Status::kOk, send_number(b.tx, 1));
    WaitSet again({&a.rx, &b.rx}, {});
    while ((status = again.slice(platform::kForever, why)) == Status::kSlice) {
    }
    CHECK_EQ(Status::kOk, status);
    std::uint64_t number = 0;
    CHECK_EQ(Status::kOk, receive_number(b.rx, number));
  }
  platform::close_fd(fd);
  for (Pair* p : {&a, &b}) p->tx.close(), p->rx.close();
  use(*s);
}

void poll_an_end() {
  const auto s = make_segment(8 * kMiB);
  {
    Pair p(*s, shared_ends());
    Failure why;
    int fd = -1;
    Status status;
    {
      const Armed now;
      status = Bridge::descriptor_of(p.rx, fd, why);
    }
    if (status != Status::kOk) check_refusal(why);
    CHECK_EQ(Status::kOk, Bridge::descriptor_of(p.rx, fd, why));
    CHECK_EQ(Status::kOk, send_number(p.tx, 1));
    platform::FdEvents events;
    CHECK_EQ(1, platform::poll_fd(fd, platform::monotonic_ns() + 20 * kSecond, events));
    p.tx.close();
    p.rx.close();
  }
  use(*s);
}

void join_by_key() {
  const auto s = make_segment(8 * kMiB);
  JoinRequest want;
  want.key = key_of("a key");
  want.shared = true;
  std::uint32_t id = 0;
  Failure why;
  Status status;
  {
    const Armed now;
    while ((status = join_channel_slice(*s, want, id, why)) == Status::kSlice) {
    }
  }
  if (status != Status::kOk) check_refusal(why);
  while (status != Status::kOk) status = join_channel_slice(*s, want, id, why);
  s->note_endpoint(id, End::kSender);
  {
    const Armed now;
    Wait wait;
    (void)wait_for_key_slice(*s, key_of("another"), platform::monotonic_ns() + kShort, wait);
    std::uint32_t found = 0;
    while ((status = find_channel_slice(*s, want.key, found)) == Status::kSlice) {
    }
    CHECK_EQ(Status::kOk, status);
    CHECK_EQ(id, found);
    while ((status = remove_channel_slice(*s, want.key)) == Status::kSlice) {
    }
    CHECK_EQ(Status::kOk, status);
  }
  s->remove_endpoint(id, End::kSender);
  use(*s);
}

// ---- named segments ----

struct Directory {
  Directory() {
    CHECK(::mkdtemp(path) != nullptr);
    ::setenv("IPCBUF_DIR", path, 1);
  }
  ~Directory() {
    DIR* stream = ::opendir(path);
    int left = 0;
    while (const dirent* entry = ::readdir(stream)) left += entry->d_name[0] != '.' ? 1 : 0;
    ::closedir(stream);
    CHECK_EQ(0, left);  // half-made files begin with a dot; the collector took them before this
    CHECK_EQ(0, ::rmdir(path));
  }
  char path[40] = "/dev/shm/ipcbuf-test-XXXXXX";
};

std::shared_ptr<Segment> open_x(NamedFailure& why, bool by_random_name = false) {
  NamedOptions options;
  options.max_size = 8 * kMiB;
  options.by_random_name = by_random_name;
  return open_named("x", options, why);
}

void collect() {
  std::vector<std::string> removed;
  NamedFailure why;
  CHECK_EQ(Status::kOk, collect_named(removed, true, why));
}

template <bool kByRandomName>
void make_a_name() {
  const Directory directory;
  NamedFailure why;
  std::shared_ptr<Segment> s;
  {
    const Armed now;
    s = open_x(why, kByRandomName);
  }
  if (!s) check_refusal(why);
  if (!s) s = open_x(why, kByRandomName);
  CHECK(s != nullptr);
  if (!s) return;
  use(*s);
  {
    const Armed now;
    drop_handle(*s);
    s.reset();
  }
  collect();
}

/// Somebody else's segment that is in use, or whose user is dead.
template <bool kDead>
void open_a_name() {
  const Directory directory;
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t other = check::in_child([&] {
    NamedFailure why;
    const auto s = open_x(why);
    CHECK(s != nullptr);
    (void)!__real_write(ready[1], "x", 1);
    for (;;) ::pause();
  });
  char c = 0;
  CHECK_EQ(1L, __real_read(ready[0], &c, 1));
  ::close(ready[0]), ::close(ready[1]);
  if (kDead) (void)check::kill_and_wait(other);
  NamedFailure why;
  std::shared_ptr<Segment> s;
  {
    const Armed now;
    s = open_x(why);
  }
  if (!s) check_refusal(why);
  if (!s) s = open_x(why);
  CHECK(s != nullptr);
  if (!s) return;
  use(*s);
  if (!kDead) (void)check::kill_and_wait(other);
  (void)reap_all(*s);
  drop_handle(*s);
  s.reset();
  collect();
}

void take_a_name_away() {
  const Directory directory;
  NamedFailure why;
  auto s = open_x(why);
  CHECK(s != nullptr);
  if (!s) return;
  Status status;
  {
    const Armed now;
    status = unlink_named("x", why);
  }
  if (status != Status::kOk) check_refusal(why);
  if (status != Status::kOk) (void)unlink_named("x", why);
  CHECK_EQ(Status::kNotFound, unlink_named("x", why));
  use(*s);
  drop_handle(*s);
}

void list_and_collect() {
  const Directory directory;
  CHECK_EQ(0, check::end_of(check::in_child([&] {
             NamedFailure why;
             CHECK(open_x(why) != nullptr);
             ::_exit(0);
           })));
  {
    const Armed now;
    NamedFailure why;
    std::vector<NamedInfo> all;
    (void)list_named(all, why);
    std::vector<std::string> removed;
    (void)collect_named(removed, false, why);
  }
  collect();
}

#define SCENARIO(name) \
  TEST(every_call_of_##name##_may_fail) { fail_each_call(#name, name); }

SCENARIO(create)
SCENARIO(attach)
SCENARIO(grow)
SCENARIO(wait_and_time_out)
SCENARIO(wait_for_a_message)
SCENARIO(wake_a_sleeper)
SCENARIO(link_rings)
SCENARIO(fork_and_talk)
SCENARIO(bury_the_dead)
SCENARIO(find_the_sender_dead)
SCENARIO(wait_at_many)
SCENARIO(poll_an_end)
SCENARIO(join_by_key)
SCENARIO(take_a_name_away)
SCENARIO(list_and_collect)

TEST(every_call_of_ringing_an_eventfd_may_fail) {
  fail_each_call("ring an eventfd", ring_a_descriptor<BellKind::kEventfd>);
}
TEST(every_call_of_ringing_a_socket_may_fail) {
  fail_each_call("ring a socket", ring_a_descriptor<BellKind::kSocket>);
}
TEST(every_call_of_making_a_name_may_fail) {
  fail_each_call("make a name", make_a_name<false>);
  fail_each_call("make a name by way of a random one", make_a_name<true>);
}
TEST(every_call_of_opening_a_name_may_fail) {
  fail_each_call("open a name", open_a_name<false>);
  fail_each_call("open a stale name", open_a_name<true>);
}

/// After all scenarios: each wrapped call was made to fail somewhere.
TEST(no_call_is_left_out) {
  if (reached.size() < 5) return;  // some scenarios alone
  for (const char* call :
       {"open",       "openat",    "fstat",     "fstatat",        "fstatfs",     "fallocate",
        "fchmod",     "fcntl",     "mmap",      "memfd_create",   "mkdir",       "linkat",
        "unlinkat",   "pread",     "read",      "recv",           "send",        "write",
        "ppoll",      "eventfd",   "dup3",      "futex",          "futex_waitv", "membarrier",
        "pidfd_open", "getrandom", "sigaction", "pthread_create", "madvise",     "mprotect"})
    if (!reached.contains(call))
      check::fail(__FILE__, __LINE__, std::string(call) + " failed in no scenario");
}

}  // namespace

int main(int n, char** v) { return check::run(n, v, 300); }
