// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_named.cpp - named.hpp: a kill at each system call of creating, opening, removing and
// collecting; and the guard that turns a SIGBUS into zeros and a flag.
//
// Everything that is not in a segment is done by system calls, so a kill before and after each of
// them is a kill everywhere.
//
// ctest-plain-only
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>

#include <set>

#include "fixture.hpp"
#include "ipcbuf/named.hpp"

namespace {

using namespace fixture;

struct Directory {
  Directory() {
    CHECK(::mkdtemp(path) != nullptr);
    ::setenv("IPCBUF_DIR", path, 1);
  }
  ~Directory() {
    for (const std::string& name : names()) ::unlink(file(name).c_str());
    CHECK_EQ(0, ::rmdir(path));
  }
  [[nodiscard]] std::string file(const std::string& name) const {
    return std::string(path) + "/" + name;
  }
  [[nodiscard]] std::set<std::string> names() const {
    std::set<std::string> out;
    DIR* stream = ::opendir(path);
    while (const dirent* entry = ::readdir(stream))
      if (entry->d_name[0] != '.' || entry->d_name[1] == 't') out.insert(entry->d_name);
    ::closedir(stream);
    return out;
  }
  char path[40] = "/dev/shm/ipcbuf-test-XXXXXX";
};

std::shared_ptr<Segment> open_x(bool by_random_name = false) {
  NamedOptions options;
  options.max_size = 2U << 20;
  options.by_random_name = by_random_name;
  NamedFailure why;
  auto s = open_named("x", options, why);
  if (!s) check::fail(__FILE__, __LINE__, why.path + ": " + why.detail + why.reason);
  return s;
}

/// A process that has "x" open until it is killed.
struct Holder {
  Holder() {
    int ready[2];
    CHECK_EQ(0, ::pipe(ready));
    pid = check::in_child([&] {
      const auto s = open_x();
      (void)!::write(ready[1], "x", 1);
      for (;;) ::pause();
    });
    char c = 0;
    CHECK_EQ(1L, ::read(ready[0], &c, 1));
    ::close(ready[0]), ::close(ready[1]);
  }
  ~Holder() { (void)check::kill_and_wait(pid); }
  pid_t pid;
};

/// Kills `operation` at its first system call, at its second, and so on until it comes through.
/// Before and after each: the entry and the exit of a call are two stops.
template <class Prepare, class Operation, class Verify>
int kill_at_each_step(Prepare&& prepare, Operation&& operation, Verify&& verify) {
  for (int step = 1;; ++step) {
    [[maybe_unused]] const auto before = prepare();
    const pid_t pid = check::in_child([&] {
      ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
      ::raise(SIGSTOP);
      operation();
      ::_exit(0);
    });
    int status = 0;
    bool ended = false;
    ::waitpid(pid, &status, 0);
    for (int i = 0; i < step && !ended; ++i) {
      ::ptrace(PTRACE_SYSCALL, pid, nullptr, nullptr);
      ::waitpid(pid, &status, 0);
      ended = WIFEXITED(status) || WIFSIGNALED(status);
    }
    if (!ended) (void)check::kill_and_wait(pid);
    if (ended) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    verify();
    if (ended) return step - 1;
  }
}

/// Whatever was left: a name leads to a whole segment or nowhere, the next user gets his own, and
/// nothing remains.
void next_user_and_nothing_left(const Directory& directory) {
  std::vector<NamedInfo> found;
  NamedFailure why;
  CHECK_EQ(Status::kOk, list_named(found, why));
  for (const NamedInfo& info : found) {
    CHECK_EQ(Status::kOk, info.status);
    CHECK(info.is_stale);
  }
  {
    const auto s = open_x();
    CHECK_EQ(1U, sound(*s).processes);
    CHECK(directory.names().contains("x"));
  }
  CHECK(!directory.names().contains("x"));
  std::vector<std::string> removed;
  CHECK_EQ(Status::kOk, collect_named(removed, true, why));
  CHECK(directory.names().empty());
}

TEST(a_creator_may_die_at_any_step) {
  const Directory directory;
  const int steps = kill_at_each_step([] { return 0; }, [] { (void)open_x().get(); },
                                      [&] { next_user_and_nothing_left(directory); });
  CHECK(steps > 50);
}

TEST(a_creator_by_a_random_name_may_die_at_any_step) {
  const Directory directory;
  const int steps = kill_at_each_step([] { return 0; }, [] { (void)open_x(true).get(); },
                                      [&] { next_user_and_nothing_left(directory); });
  CHECK(steps > 50);
}

TEST(who_finds_a_stale_segment_may_die_at_any_step) {
  const Directory directory;
  const int steps = kill_at_each_step([] { return Holder().pid; }, [] { (void)open_x().get(); },
                                      [&] { next_user_and_nothing_left(directory); });
  CHECK(steps > 60);
}

TEST(who_opens_a_living_segment_may_die_at_any_step) {
  const Directory directory;
  const int steps =
      kill_at_each_step([] { return std::make_unique<Holder>(); }, [] { (void)open_x().get(); },
                        [&] {
                          const auto s = open_x();
                          (void)reap_all(*s);
                          CHECK_EQ(2U, sound(*s).processes);
                          CHECK_EQ(1U, directory.names().size());
                        });
  CHECK(steps > 30);
  next_user_and_nothing_left(directory);
}

TEST(who_removes_a_name_may_die_at_any_step) {
  const Directory directory;
  const int steps = kill_at_each_step([] { return std::make_unique<Holder>(); },
                                      [] {
                                        NamedFailure why;
                                        (void)unlink_named("x", why);
                                      },
                                      [&] {
                                        NamedFailure why;
                                        const Status status = unlink_named("x", why);
                                        CHECK(status == Status::kOk || status == Status::kNotFound);
                                        CHECK(directory.names().empty());
                                        const auto fresh = open_x();
                                        CHECK_EQ(1U, sound(*fresh).processes);
                                      });
  CHECK(steps > 8);
}

TEST(a_collector_may_die_at_any_step) {
  const Directory directory;
  const int steps = kill_at_each_step(
      [&] {
        ::close(::open(directory.file(".tmp-1").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
        return Holder().pid;
      },
      [] {
        std::vector<std::string> removed;
        NamedFailure why;
        (void)collect_named(removed, true, why);
      },
      [&] { next_user_and_nothing_left(directory); });
  CHECK(steps > 20);
}

TEST(a_half_removed_second_name_does_not_look_like_a_stranger) {
  const Directory directory;
  const Holder holder;
  CHECK_EQ(0, ::link(directory.file("x").c_str(), directory.file(".tmp-2").c_str()));

  const auto s = open_x();

  CHECK_EQ(2U, sound(*s).processes);
  CHECK_EQ(1U, directory.names().size());
}

// ---- the guard ----

TEST(a_shortened_file_reads_as_zeros_and_says_so) {
  const Directory directory;
  const auto s = open_x();
  const std::uint64_t at = allocate(*s, 100'000);
  std::memset(s->payload(at), 7, 100'000);

  CHECK_EQ(0, ::truncate(directory.file("x").c_str(), 4096));

  CHECK(!s->is_truncated());
  CHECK_EQ(0, std::to_integer<int>(s->payload(at)[50'000]));
  CHECK(s->is_truncated());
  CHECK_EQ(0, std::to_integer<int>(s->payload(at)[99'999]));  // no second fault
  CHECK_EQ(Status::kTruncated, free_block(*s, at));
  Failure why;
  std::uint64_t other = 0;
  CHECK_EQ(Status::kTruncated, ThreadHeap::of(*s).allocate(1U << 20, other, why));
}

TEST(growth_behind_a_cut_is_refused) {
  const Directory directory;
  NamedOptions options;
  options.max_size = 64U << 20;
  NamedFailure why;
  const auto s = open_named("x", options, why);
  CHECK_EQ(0, ::truncate(directory.file("x").c_str(),
                         static_cast<off_t>(s->constants().payload + 4096)));

  CHECK(s->reserve(s->page_offset(200), kPageSize) != 0);

  CHECK(s->is_truncated());
}

TEST(faults_elsewhere_go_to_the_handler_that_was_there_before) {
  const Directory directory;
  const pid_t pid = check::in_child([&] {
    struct sigaction action{};
    action.sa_handler = [](int) { ::_exit(42); };
    ::sigaction(SIGBUS, &action, nullptr);
    const auto s = open_x();
    CHECK_EQ(0, ::truncate(directory.file("x").c_str(), 0));
    (void)s->committed_pages();
    CHECK(s->is_truncated());
    const int fd = platform::create_memfd();
    int error = 0;
    auto* p = static_cast<volatile char*>(platform::map(fd, 4096, error));
    (void)p[0];
  });
  CHECK_EQ(42, check::end_of(pid));
}

TEST(without_a_handler_before_a_fault_elsewhere_ends_the_process) {
  const Directory directory;
  const pid_t pid = check::in_child([&] {
    const auto s = open_x();
    const int fd = platform::create_memfd();
    int error = 0;
    auto* p = static_cast<volatile char*>(platform::map(fd, 4096, error));
    (void)p[0];
  });
  CHECK_EQ(-SIGBUS, check::end_of(pid));
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
