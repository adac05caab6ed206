// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// named_file.cpp - directories, files with a name, and the gate of such a file.
#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

namespace {

FileStatus status_of(const struct stat& s) noexcept {
  FileStatus out;
  out.device = s.st_dev;
  out.inode = s.st_ino;
  out.size = static_cast<std::uint64_t>(s.st_size);
  out.memory = static_cast<std::uint64_t>(s.st_blocks) * 512;
  out.owner = s.st_uid;
  out.mode = s.st_mode & 07777;
  out.links = static_cast<std::uint32_t>(s.st_nlink);
  out.kind = S_ISREG(s.st_mode)   ? FileKind::kFile
             : S_ISDIR(s.st_mode) ? FileKind::kDirectory
             : S_ISLNK(s.st_mode) ? FileKind::kLink
                                  : FileKind::kOther;
  return out;
}

constexpr int kOpenFile = O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

}  // namespace

std::uint32_t effective_user() noexcept { return ::geteuid(); }

const char* environment(const char* name) noexcept {
  const char* value = ::secure_getenv(name);
  return value == nullptr ? "" : value;
}

int file_status(int fd, FileStatus& out) noexcept {
  struct stat s{};
  if (::fstat(fd, &s) != 0) return -errno;
  out = status_of(s);
  return 0;
}

int status_at(int directory, const char* name, FileStatus& out) noexcept {
  struct stat s{};
  const int from = directory < 0 ? AT_FDCWD : directory;
  if (::fstatat(from, name, &s, AT_SYMLINK_NOFOLLOW) != 0) return -errno;
  out = status_of(s);
  return 0;
}

int make_directory(const char* path) noexcept { return ::mkdir(path, 0700) == 0 ? 0 : -errno; }

int open_directory(const char* path) noexcept {
  const int fd = ::open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int make_private(int fd, bool directory) noexcept {
  return ::fchmod(fd, directory ? 0700 : 0600) == 0 ? 0 : -errno;
}

int open_at(int directory, const char* name) noexcept {
  const int fd = ::openat(directory, name, kOpenFile);
  return fd < 0 ? -errno : fd;
}

int create_nameless(int directory) noexcept {
  const int fd = ::openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  return fd < 0 ? -errno : fd;
}

int create_at(int directory, const char* name) noexcept {
  const int fd = ::openat(directory, name, kOpenFile | O_CREAT | O_EXCL, 0600);
  return fd < 0 ? -errno : fd;
}

int give_name(int fd, int directory, const char* name) noexcept {
  char path[40];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  if (::linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW) == 0) return 0;
  if (errno == EEXIST) return -EEXIST;
  // Without /proc; the kernel wants a capability for it, or since 6.10 that we opened the file.
  return ::linkat(fd, "", directory, name, AT_EMPTY_PATH) == 0 ? 0 : -errno;
}

int link_at(int directory, const char* from, const char* to) noexcept {
  return ::linkat(directory, from, directory, to, 0) == 0 ? 0 : -errno;
}

int unlink_at(int directory, const char* name) noexcept {
  return ::unlinkat(directory, name, 0) == 0 ? 0 : -errno;
}

int file_system(int fd, FileSystem& out) noexcept {
  struct statfs s{};
  if (::fstatfs(fd, &s) != 0) return -errno;
  const auto block = static_cast<std::uint64_t>(s.f_bsize);
  out.is_memory = s.f_type == TMPFS_MAGIC || s.f_type == RAMFS_MAGIC;
  out.size = s.f_blocks * block;
  out.free = s.f_bavail * block;
  return 0;
}

int list_directory(int directory, bool (*visit)(void* context, const char* name),
                   void* context) noexcept {
  // An own description: reading moves the position of a shared one.
  const int own = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (own < 0) return -errno;
  DIR* stream = ::fdopendir(own);
  if (stream == nullptr) {
    const int error = -errno;
    ::close(own);
    return error;
  }
  while (const dirent* entry = ::readdir(stream)) {
    if (std::strcmp(entry->d_name, ".") == 0 || std::strcmp(entry->d_name, "..") == 0) continue;
    if (!visit(context, entry->d_name)) break;
  }
  ::closedir(stream);
  return 0;
}

bool cannot_shrink(int fd) noexcept {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
}

void pause_ms(int milliseconds) noexcept {
  const timespec t{milliseconds / 1000, milliseconds % 1000 * 1'000'000L};
  ::nanosleep(&t, nullptr);
}

}  // namespace ipcbuf::platform
