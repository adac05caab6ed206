// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// fixture.hpp - segments, messages and the census, in the short forms that tests use.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "ipcbuf/block.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/fsck.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/segment.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace fixture {

using namespace ipcbuf;

inline constexpr std::int64_t kSecond = 1'000'000'000;

inline std::shared_ptr<Segment> make_segment(std::uint64_t max_size = 64U << 20) {
  Failure why;
  auto s = Segment::create(max_size, why);
  if (!s) {
    std::fprintf(stderr, "no segment: %s, errno %d\n", why.reason, why.sys_errno);
    std::abort();
  }
  return s;
}

/// Fails for every problem the census finds.
inline Census sound(Segment& s) {
  Census census = take_census(s, true);
  for (const std::string& problem : census.problems) check::fail(__FILE__, __LINE__, problem);
  return census;
}

inline std::uint64_t allocate(Segment& s, std::uint64_t length) {
  Failure why;
  std::uint64_t at = 0;
  CHECK_EQ(Status::kOk, ThreadHeap::of(s).allocate(length, at, why));
  return at;
}

inline Outgoing message(const void* bytes, std::size_t size) {
  Outgoing m;
  m.payload = bytes;
  m.payload_size = static_cast<std::uint32_t>(size);
  return m;
}

/// Sends a number, waiting at most `seconds` for room.
inline Status send_number(SenderEnd& tx, std::uint64_t number, std::int64_t seconds = 20) {
  const Outgoing m = message(&number, sizeof number);
  const std::int64_t until = platform::monotonic_ns() + seconds * kSecond;
  Failure why;
  Wait wait;
  Status status;
  while ((status = tx.send_slice(m, until, why, wait)) == Status::kSlice) {
  }
  tx.finish_wait(wait);
  return status;
}
/// Receives a number, waiting at most `seconds`.
inline Status receive_number(ReceiverEnd& rx, std::uint64_t& number, std::int64_t seconds = 20) {
  Incoming m;
  const std::int64_t until = platform::monotonic_ns() + seconds * kSecond;
  Wait wait;
  Status status;
  while ((status = rx.receive_slice(m, until, wait)) == Status::kSlice) {
  }
  rx.finish_wait(wait);
  if (status == Status::kOk) std::memcpy(&number, m.payload, sizeof number);
  return status;
}

/// A channel and one object for each end.
struct Pair {
  Pair(Segment& segment, const ChannelOptions& options) : s(segment), id(make(segment, options)) {}
  static std::uint32_t make(Segment& segment, const ChannelOptions& options) {
    Failure why;
    std::uint32_t made = 0;
    CHECK_EQ(Status::kOk, create_channel(segment, options, made, why));
    return made;
  }
  Segment& s;
  std::uint32_t id;
  SenderEnd tx{s, id};
  ReceiverEnd rx{s, id};
};

inline ChannelOptions shared_ends() {
  ChannelOptions options;
  options.shared = true;
  return options;
}

/// A process that does `body` and waits to be killed.
template <class Body>
pid_t child_that(Body&& body) {
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    body();
    (void)!::write(ready[1], check::failures == 0 ? "y" : "n", 1);
    for (;;) ::pause();
  });
  char c = 0;
  CHECK_EQ(1L, ::read(ready[0], &c, 1));
  CHECK_EQ('y', c);
  ::close(ready[0]), ::close(ready[1]);
  return pid;
}

}  // namespace fixture
