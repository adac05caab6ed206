// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_segment.cpp - segment.hpp: creation, attaching to good and bad files, who is alive.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "fixture.hpp"
#include "ipcbuf/fork.hpp"
#include "ipcbuf/segment.hpp"

namespace {

using namespace fixture;

/// A memory file with the control part of `s`.
int copy_of(Segment& s) {
  const int fd = platform::create_memfd();
  CHECK_EQ(0, ::ftruncate(fd, static_cast<off_t>(s.constants().window)));
  CHECK_EQ(4096L, ::pwrite(fd, &s.header(), 4096, 0));
  return fd;
}
Status attach_status(int fd) {
  Failure why;
  const auto s = Segment::attach(fd, why);
  return s ? Status::kOk : why.status;
}

TEST(a_new_segment_is_sound_and_has_one_process) {
  const auto s = make_segment();
  const Census census = sound(*s);

  CHECK_EQ(1U, census.processes);
  CHECK_EQ(2U << 20, census.committed_bytes);
  CHECK(s->token() != 0);
  CHECK(!s->is_poisoned());
}

TEST(sizes_are_rounded_up_to_what_is_possible) {
  CHECK_EQ(kMinSize, make_segment(1)->constants().max_size);
  CHECK_EQ(kMinSize + kPageSize, make_segment(kMinSize + 1)->constants().max_size);
  Failure why;
  CHECK(Segment::create(kMaxSize + 1, why) == nullptr);
  CHECK_EQ(Status::kTooLarge, why.status);
  CHECK(Segment::create(0, why) != nullptr);
}

TEST(tables_do_not_overlap) {
  const auto s = make_segment();
  const Constants& c = s->constants();

  CHECK(sizeof(Header) <= c.slots);
  CHECK(c.slots + std::uint64_t{c.max_slots} * sizeof(SlotRow) <= c.channels);
  CHECK(c.channels + std::uint64_t{c.max_channels} * sizeof(ChannelRow) <= c.entries);
  CHECK(c.entries + std::uint64_t{c.max_entries} * sizeof(SharedEntry) <= c.runs);
  CHECK(c.runs + std::uint64_t{c.max_pages} * 8 <= c.pages);
  CHECK(c.pages + std::uint64_t{c.max_pages} * sizeof(PageInfo) <= c.index);
  CHECK(c.index + std::uint64_t{c.max_pages} * 4 + kGuardGap <= c.payload);
  CHECK_EQ(c.payload + c.max_size, c.window);
}

TEST(a_process_maps_a_segment_once) {
  const auto s = make_segment();
  Failure why;
  const int fd = ::dup(s->fd());

  CHECK(Segment::attach(fd, why) == s);
  CHECK(Segment::find(s->constants().uuid) == s);
  CHECK_EQ(1U, sound(*s).processes);
  ::close(fd);
}

TEST(a_segment_cannot_be_cut_short) {
  const auto s = make_segment();

  CHECK(::ftruncate(s->fd(), 4096) != 0);
  CHECK_EQ(EPERM, errno);
}

TEST(files_that_are_no_segment_are_refused) {
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  CHECK_EQ(Status::kNotASegment, attach_status(null));
  ::close(null);
  CHECK_EQ(Status::kSystem, attach_status(-1));
  const int empty = platform::create_memfd();
  CHECK_EQ(Status::kNotASegment, attach_status(empty));
  CHECK_EQ(0, ::ftruncate(empty, 1 << 20));
  CHECK_EQ(Status::kNotASegment, attach_status(empty));
  ::close(empty);
}

TEST(other_versions_machines_and_lengths_are_told_apart) {
  const auto s = make_segment();
  const auto with = [&](auto change) {
    const int fd = copy_of(*s);
    Constants c = s->constants();
    change(c, fd);
    CHECK_EQ(static_cast<long>(sizeof c), ::pwrite(fd, &c, sizeof c, 0));
    const Status status = attach_status(fd);
    ::close(fd);
    return status;
  };
  CHECK_EQ(Status::kOk, with([](Constants&, int) {}));
  CHECK_EQ(Status::kVersion, with([](Constants& c, int) { ++c.version; }));
  CHECK_EQ(Status::kAbiDiffers, with([](Constants& c, int) { c.abi ^= 1U << 24; }));
  CHECK_EQ(Status::kCorrupted, with([](Constants& c, int) { c.payload += 4096; }));
  CHECK_EQ(Status::kTruncated, with([](Constants& c, int fd) {
             CHECK_EQ(0, ::ftruncate(fd, static_cast<off_t>(c.payload - 4096)));
           }));
}

TEST(a_file_shorter_than_its_heap_is_refused) {
  const auto s = make_segment();
  const int fd = copy_of(*s);
  const Constants& c = s->constants();
  const std::uint64_t heap = std::uint64_t{s->committed_pages()} << kPageShift;
  CHECK_EQ(0, ::ftruncate(fd, static_cast<off_t>(c.payload + heap - kPageSize)));
  CHECK_EQ(Status::kTruncated, attach_status(fd));
  CHECK_EQ(0, ::ftruncate(fd, static_cast<off_t>(c.window)));
  const std::uint32_t pages = c.max_pages + 1;
  CHECK_EQ(4L, ::pwrite(fd, &pages, 4, offsetof(Header, committed_pages)));
  CHECK_EQ(Status::kCorrupted, attach_status(fd));
  ::close(fd);
}

TEST(every_flipped_bit_of_the_constants_is_refused) {
  const auto s = make_segment();
  const int fd = copy_of(*s);
  Constants c = s->constants();
  auto* bytes = reinterpret_cast<unsigned char*>(&c);
  int accepted = 0;
  for (std::size_t bit = 0; bit < offsetof(Constants, spare) * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<unsigned char>(1U << bit % 8);
    CHECK_EQ(static_cast<long>(sizeof c), ::pwrite(fd, &c, sizeof c, 0));
    if (attach_status(fd) == Status::kOk) ++accepted;
    bytes[bit / 8] ^= static_cast<unsigned char>(1U << bit % 8);
  }
  ::close(fd);

  CHECK_EQ(0, accepted);
}

TEST(the_living_are_alive_and_the_dead_are_dead) {
  const auto s = make_segment();
  std::atomic<Token>* token = static_cast<std::atomic<Token>*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t pid = check::in_child([&] {
    *token = s->token();
    for (;;) ::pause();
  });
  while (*token == 0) std::this_thread::yield();

  CHECK(!s->is_dead(s->token()));
  CHECK(!s->is_dead(0));
  CHECK(!s->is_dead(*token));
  ::kill(pid, SIGSTOP);
  CHECK(!s->is_dead(*token));  // slow is not dead
  ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitid(P_PID, static_cast<id_t>(pid), nullptr, WEXITED | WNOWAIT) != 0) {
  }
  CHECK(s->is_dead(*token));  // a zombie stores nothing any more
  ::waitpid(pid, &status, 0);
  CHECK(s->is_dead(*token));
  CHECK(s->is_dead(make_token(slot_of(*token), generation_of(*token) + 1)));
  CHECK_EQ(1, reap_all(*s));
  CHECK(s->is_dead(*token));
  ::munmap(token, 4096);
}

TEST(a_process_that_became_another_program_is_dead) {
  const auto s = make_segment();
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    (void)allocate(*s, 100);
    ::dup2(ready[1], 1);
    ::execl("/bin/sh", "sh", "-c", "echo x; exec sleep 100", nullptr);
  });
  char c = 0;
  CHECK_EQ(1L, ::read(ready[0], &c, 1));
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(0U, sound(*s).slabs);
  (void)check::kill_and_wait(pid);
  ::close(ready[0]), ::close(ready[1]);
}

TEST(a_process_whose_descriptor_was_closed_under_it_is_alive) {
  const auto s = make_segment();
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    (void)allocate(*s, 100);
    ::close(s->fd());
    (void)!::write(ready[1], "x", 1);
    for (;;) ::pause();
  });
  char c = 0;
  CHECK_EQ(1L, ::read(ready[0], &c, 1));
  CHECK_EQ(0, reap_all(*s));
  CHECK_EQ(2U, sound(*s).processes);
  (void)check::kill_and_wait(pid);
  CHECK_EQ(1, reap_all(*s));
  ::close(ready[0]), ::close(ready[1]);
}

TEST(leaving_gives_everything_back) {
  const auto s = make_segment();
  const int fd = s->fd();
  const pid_t pid = check::in_child([&] {
    // A child that never had the segment: through the descriptor, as spawn does it.
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", static_cast<int>(::getppid()), fd);
    const int own = ::open(path, O_RDWR | O_CLOEXEC);
    Failure why;
    auto same = Segment::attach(own, why);
    CHECK(same != nullptr);
    (void)allocate(*same, 5000);
    std::uint32_t id = 0;
    CHECK_EQ(Status::kOk, create_channel(*same, {}, id, why));
  });
  CHECK_EQ(0, check::end_of(pid));
  (void)reap_all(*s);
  const Census census = sound(*s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(0U, census.channels);
  CHECK_EQ(census.committed_bytes, census.free_bytes + census.returned_bytes);
}

TEST(a_limit_on_address_space_makes_the_window_smaller) {
  if (check::kSanitized) return;  // they reserve terabytes themselves
  const pid_t pid = check::in_child([] {
    const rlimit limit{512UL << 20, 512UL << 20};
    CHECK_EQ(0, ::setrlimit(RLIMIT_AS, &limit));
    Failure why;
    const auto s = Segment::create(8UL << 30, why);
    CHECK(s != nullptr);
    CHECK(s->constants().window < 512UL << 20);
    CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 1000)));
  });
  CHECK_EQ(0, check::end_of(pid));
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
