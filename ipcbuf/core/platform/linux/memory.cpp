// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// memory.cpp - memory files, mappings, life bytes and the limits of the machine.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ipcbuf/platform.hpp"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace ipcbuf::platform {

int create_memfd() noexcept {
  int fd = ::memfd_create("ipcbuf", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create("ipcbuf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -errno;
  if (::fchmod(fd, 0600) != 0) {
    const int error = -errno;
    ::close(fd);
    return error;
  }
  return fd;
}

int seal(int fd) noexcept {
  return ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) == 0 ? 0 : -errno;
}

int reopen(int fd) noexcept {
  char path[40];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int own = ::open(path, O_RDWR | O_CLOEXEC);
  return own < 0 ? -errno : own;
}

int duplicate(int fd) noexcept {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return copy < 0 ? -errno : copy;
}

int reserve(int fd, std::uint64_t offset, std::uint64_t length) noexcept {
  for (;;) {
    if (::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

int punch(int fd, std::uint64_t offset, std::uint64_t length) noexcept {
  for (;;) {
    if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(length)) == 0)
      return 0;
    if (errno != EINTR) return -errno;
  }
}

void file_system_room(int fd, std::uint64_t& size, std::uint64_t& free) noexcept {
  struct statvfs s{};
  size = free = 0;
  if (::fstatvfs(fd, &s) != 0) return;
  size = std::uint64_t{s.f_blocks} * s.f_frsize;
  free = std::uint64_t{s.f_bavail} * s.f_frsize;
}

std::uint64_t file_size_limit() noexcept {
  struct rlimit limit{};
  return ::getrlimit(RLIMIT_FSIZE, &limit) == 0 ? limit.rlim_cur : UINT64_MAX;
}

int file_id(int fd, FileId& out) noexcept {
  struct stat s{};
  if (::fstat(fd, &s) != 0) return -errno;
  out = {s.st_dev, s.st_ino, static_cast<std::uint64_t>(s.st_size)};
  return S_ISREG(s.st_mode) ? 0 : -EINVAL;
}

int read_at(int fd, void* out, std::size_t n, std::uint64_t offset) noexcept {
  auto* p = static_cast<char*>(out);
  std::size_t done = 0;
  while (done < n) {
    const ssize_t got = ::pread(fd, p + done, n - done, static_cast<off_t>(offset + done));
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got == 0) {
      break;
    } else if (errno != EINTR) {
      return -errno;
    }
  }
  return static_cast<int>(done);
}

namespace {

void* map_at(void* address, int fd, std::uint64_t length, int flags) noexcept {
  void* p =
      ::mmap(address, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | flags, fd, 0);
  if (p == MAP_FAILED) return nullptr;
  ::madvise(p, length, MADV_DONTDUMP);  // a dying process counts as alive until its dump is done
  return p;
}

}  // namespace

void* map(int fd, std::uint64_t length, int& error) noexcept {
  void* p = map_at(nullptr, fd, length, 0);
  if (p == nullptr) error = -errno;
  return p;
}

int map_again(void* address, int fd, std::uint64_t length) noexcept {
  return map_at(address, fd, length, MAP_FIXED) == nullptr ? -errno : 0;
}

void protect_gap(void* address, std::uint64_t length) noexcept {
  ::mprotect(address, length, PROT_NONE);
}

void unmap(void* address, std::uint64_t length) noexcept { ::munmap(address, length); }

void close_fd(int fd) noexcept {
  if (fd >= 0) ::close(fd);
}

int move_fd(int from, int to) noexcept {
  if (from == to) return 0;
  if (::dup3(from, to, O_CLOEXEC) < 0) return -errno;
  ::close(from);
  return 0;
}

void* wipe_on_fork_page() noexcept {
  const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  ::madvise(p, size, MADV_WIPEONFORK);  // where refused, the at-fork handlers still work
  return p;
}

// ---- life bytes ----

namespace {

constexpr off_t kLifeBytes = static_cast<off_t>(1) << 61;  // beyond the end of any segment
constexpr off_t kGateByte = kLifeBytes - 1;

int life_lock(int fd, off_t first, off_t count, short type, int command, struct flock& l) noexcept {
  l = {};
  l.l_type = type;
  l.l_whence = SEEK_SET;
  l.l_start = first;
  l.l_len = count;
  return ::fcntl(fd, command, &l) == 0 ? 0 : -errno;
}

}  // namespace

int lock_life_byte(int fd, std::uint32_t index) noexcept {
  struct flock l{};
  return life_lock(fd, kLifeBytes + index, 1, F_WRLCK, F_OFD_SETLK, l);
}

void unlock_life_byte(int fd, std::uint32_t index) noexcept {
  struct flock l{};
  life_lock(fd, kLifeBytes + index, 1, F_UNLCK, F_OFD_SETLK, l);
}

int test_life_byte(int fd, std::uint32_t index) noexcept {
  struct flock l{};
  const int r = life_lock(fd, kLifeBytes + index, 1, F_WRLCK, F_OFD_GETLK, l);
  if (r < 0) return r;
  return l.l_type == F_UNLCK ? 0 : 1;
}

int test_life_bytes(int fd) noexcept {
  struct flock l{};
  const int r = life_lock(fd, kLifeBytes, 0, F_WRLCK, F_OFD_GETLK, l);  // to the end of all files
  if (r < 0) return r;
  return l.l_type == F_UNLCK ? 0 : 1;
}

int try_gate(int fd, Gate gate) noexcept {
  struct flock l{};
  const short type = gate == Gate::kAlone ? F_WRLCK : F_RDLCK;
  const int r = life_lock(fd, kGateByte, 1, type, F_OFD_SETLK, l);
  return r == -EACCES ? -EAGAIN : r;
}

void leave_gate(int fd) noexcept {
  struct flock l{};
  life_lock(fd, kGateByte, 1, F_UNLCK, F_OFD_SETLK, l);
}

// ---- limits ----

namespace {

/// Reads a small file into `text`; no allocation, it may run under a lock.
bool read_small(const char* path, char* text, std::size_t size) noexcept {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t n = ::read(fd, text, size - 1);
  ::close(fd);
  if (n < 0) return false;
  text[n] = 0;
  return true;
}

std::uint64_t number_after(const char* text, const char* key) noexcept {
  const char* p = std::strstr(text, key);
  return p == nullptr ? 0 : std::strtoull(p + std::strlen(key), nullptr, 10);
}

/// "max" and the huge number that version 1 writes for "no limit" both mean none.
std::uint64_t limit_of(const char* text) noexcept {
  if (text[0] < '0' || text[0] > '9') return UINT64_MAX;
  const std::uint64_t n = std::strtoull(text, nullptr, 10);
  return n >= 1ULL << 60 ? UINT64_MAX : n;
}

void one_cgroup(const char* directory, bool v2, MemoryLimits& out) noexcept {
  char path[4352];
  char text[4096];
  std::snprintf(path, sizeof path, "%s/%s", directory, v2 ? "memory.max" : "memory.limit_in_bytes");
  if (!read_small(path, text, sizeof text)) return;
  const std::uint64_t limit = limit_of(text);
  if (limit == UINT64_MAX) return;
  std::snprintf(path, sizeof path, "%s/%s", directory,
                v2 ? "memory.current" : "memory.usage_in_bytes");
  const std::uint64_t used =
      read_small(path, text, sizeof text) ? std::strtoull(text, nullptr, 10) : 0;
  std::snprintf(path, sizeof path, "%s/memory.stat", directory);
  const std::uint64_t inactive =
      read_small(path, text, sizeof text)
          ? number_after(text, v2 ? "\ninactive_file " : "\ntotal_inactive_file ")
          : 0;
  // 5 % are kept: at its limit a group kills whoever touches the next page of any memory.
  const std::uint64_t room = (limit > used ? limit - used : 0) + inactive;
  const std::uint64_t keep = limit / 20;
  out.cgroup_limit = std::min(out.cgroup_limit, limit);
  out.cgroup_headroom = std::min(out.cgroup_headroom, room > keep ? room - keep : 0);
}

/// Visits the group named by `relative` below `root` and every group above it.
void cgroup_and_ancestors(const char* root, char* relative, bool v2, MemoryLimits& out) noexcept {
  char directory[4200];
  for (;;) {
    std::snprintf(directory, sizeof directory, "%s%s", root, relative);
    one_cgroup(directory, v2, out);
    char* slash = std::strrchr(relative, '/');
    if (slash == nullptr || relative[0] == 0) break;
    *slash = 0;
  }
}

}  // namespace

MemoryLimits memory_limits() noexcept {
  MemoryLimits out;
  char text[4096];
  if (read_small("/proc/meminfo", text, sizeof text)) {
    out.physical = number_after(text, "MemTotal:") * 1024;
    out.available = number_after(text, "MemAvailable:") * 1024;
  }
  if (!read_small("/proc/self/cgroup", text, sizeof text)) return out;
  for (char* line = text; line != nullptr && *line != 0;) {
    char* end = std::strchr(line, '\n');
    if (end != nullptr) *end = 0;
    // "0::/path" is version 2; "N:memory:/path" (or a list with memory in it) is version 1.
    char* first = std::strchr(line, ':');
    char* second = first == nullptr ? nullptr : std::strchr(first + 1, ':');
    if (second != nullptr) {
      *second = 0;
      const char* controllers = first + 1;
      char* relative = second + 1;
      if (relative[0] == '/' && relative[1] == 0) relative[0] = 0;
      if (controllers[0] == 0) {
        cgroup_and_ancestors("/sys/fs/cgroup", relative, true, out);
      } else if (std::strstr(controllers, "memory") != nullptr) {
        cgroup_and_ancestors("/sys/fs/cgroup/memory", relative, false, out);
      }
    }
    line = end == nullptr ? nullptr : end + 1;
  }
  return out;
}

}  // namespace ipcbuf::platform
