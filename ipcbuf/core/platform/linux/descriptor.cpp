// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// descriptor.cpp - descriptors that can be polled: eventfd and socket pair.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <ctime>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

static_assert(sizeof(PollFd) == sizeof(pollfd) &&
              offsetof(PollFd, seen) == offsetof(pollfd, revents));
static_assert(kReadable == POLLIN && kHangup == (POLLHUP | POLLERR) && kNotOpen == POLLNVAL);

int make_eventfd(unsigned count) noexcept {
  const int fd = ::eventfd(count, EFD_NONBLOCK | EFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int poll_many(PollFd* fds, std::size_t n, std::int64_t until_ns) noexcept {
  timespec left{};
  timespec* limit = nullptr;
  if (until_ns != kForever) {
    const std::int64_t now = monotonic_ns();
    const std::int64_t ns = until_ns > now ? until_ns - now : 0;
    left.tv_sec = ns / 1'000'000'000;
    left.tv_nsec = ns % 1'000'000'000;
    limit = &left;
  }
  const int r = ::ppoll(reinterpret_cast<pollfd*>(fds), n, limit, nullptr);
  return r < 0 ? -errno : r;
}

int poll_fd(int fd, std::int64_t until_ns, FdEvents& out) noexcept {
  PollFd p{fd, kReadable, 0};
  const int r = poll_many(&p, 1, until_ns);
  if (r < 0) return r;
  out.readable = (p.seen & kReadable) != 0;
  out.hangup = (p.seen & (kHangup | kNotOpen)) != 0;
  return r;
}

int write_token(int fd, bool eventfd) noexcept {
  const std::uint64_t one = 1;
  ssize_t n = 0;
  do {
    n = eventfd ? ::write(fd, &one, sizeof one) : ::send(fd, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : 0;
}

void drain_token(int fd, bool eventfd) noexcept {
  char bytes[64];  // more than one token is there only if a writer died between write and mark
  for (;;) {
    const ssize_t n =
        eventfd ? ::read(fd, bytes, 8) : ::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (eventfd || n < static_cast<ssize_t>(sizeof bytes)) return;
  }
}

}  // namespace ipcbuf::platform
