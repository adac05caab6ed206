// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// descriptor.cpp - descriptors that can be polled: eventfd and socket pair.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

int poll_fd(int fd, std::int64_t until_ns, FdEvents& out) noexcept {
  pollfd p{};
  p.fd = fd;
  p.events = POLLIN;
  timespec left{};
  timespec* limit = nullptr;
  if (until_ns != kForever) {
    const std::int64_t now = monotonic_ns();
    const std::int64_t ns = until_ns > now ? until_ns - now : 0;
    left.tv_sec = ns / 1'000'000'000;
    left.tv_nsec = ns % 1'000'000'000;
    limit = &left;
  }
  const int r = ::ppoll(&p, 1, limit, nullptr);
  if (r < 0) return -errno;
  out.readable = (p.revents & POLLIN) != 0;
  out.hangup = (p.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
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
