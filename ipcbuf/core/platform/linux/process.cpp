// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// process.cpp - identity and life of processes, and clocks.
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <initializer_list>
#include <new>

#include "ipcbuf/platform.hpp"

#ifndef PIDFS_MAGIC  // NOLINT: older headers do not have it
#define PIDFS_MAGIC 0x50494446
#endif

namespace ipcbuf::platform {

std::int64_t monotonic_ns() noexcept {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

int cpu_count() noexcept {
  static const int n = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  return n;
}

std::uint32_t process_id() noexcept { return static_cast<std::uint32_t>(::getpid()); }

std::uint64_t pid_namespace() noexcept {
  struct stat s{};
  return ::stat("/proc/self/ns/pid", &s) == 0 ? s.st_ino : 0;
}

std::uint64_t start_time(std::uint32_t pid) noexcept {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%u/stat", pid);
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[1024];
  const ssize_t n = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  if (n <= 0) return 0;
  text[n] = 0;
  // The command name may hold anything, so count fields from the last parenthesis: the state
  // is field 3, the start time field 22.
  const char* p = std::strrchr(text, ')');
  for (int field = 2; p != nullptr && field < 22; ++field) p = std::strchr(p + 1, ' ');
  return p == nullptr ? 0 : std::strtoull(p, nullptr, 10);
}

int pidfd_open(std::uint32_t pid) noexcept {
  const long fd = ::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0U);
  return fd < 0 ? -errno : static_cast<int>(fd);
}

std::uint64_t pidfs_inode(int pidfd) noexcept {
  struct statfs fs{};
  struct stat s{};
  if (::fstatfs(pidfd, &fs) != 0 || fs.f_type != PIDFS_MAGIC) return 0;
  return ::fstat(pidfd, &s) == 0 ? s.st_ino : 0;
}

bool maps_inode(std::uint32_t pid, std::uint64_t inode) noexcept {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%u/maps", pid);
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return true;
  // A line: addresses permissions offset device inode path. The inode is the fifth field.
  char chunk[4096];
  int field = 0;
  std::uint64_t value = 0;
  bool found = false;
  for (ssize_t n = 0; !found && (n = ::read(fd, chunk, sizeof chunk)) > 0;) {
    for (ssize_t i = 0; i < n && !found; ++i) {
      const char c = chunk[i];
      if (c == '\n') {
        field = 0, value = 0;
      } else if (c == ' ') {
        found = field == 4 && value == inode && inode != 0;
        if (field < 5) ++field;
      } else if (field == 4 && c >= '0' && c <= '9') {
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
      }
    }
  }
  ::close(fd);
  return found;
}

int start_thread(void (*body)(void*), void* argument) noexcept {
  struct Start {
    void (*body)(void*);
    void* argument;
  };
  auto* start = new (std::nothrow) Start{body, argument};
  if (start == nullptr) return -ENOMEM;
  // The thread inherits the mask: no handler runs in it but for its own faults (fault_guard.cpp).
  sigset_t all{};
  sigset_t before{};
  ::sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT}) ::sigdelset(&all, fault);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread{};
  const int error = ::pthread_create(
      &thread, nullptr,
      [](void* p) -> void* {
        const Start mine = *static_cast<Start*>(p);
        delete static_cast<Start*>(p);
        ::prctl(PR_SET_NAME, "ipcbuf");
        mine.body(mine.argument);
        return nullptr;
      },
      start);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) {
    delete start;
    return -error;
  }
  ::pthread_detach(thread);
  return 0;
}

void random_bytes(void* out, std::size_t n) noexcept {
  auto* p = static_cast<unsigned char*>(out);
  for (std::size_t done = 0; done < n;) {
    const ssize_t got = ::getrandom(p + done, n - done, 0);
    if (got > 0) done += static_cast<std::size_t>(got);
  }
}

}  // namespace ipcbuf::platform
