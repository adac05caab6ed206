// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// platform.hpp - the only system calls of the core. One folder below platform/ per system.
// Calls that can fail return a negative errno; none throws.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace ipcbuf::platform {

inline void cpu_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// ---- time and identity ----
inline constexpr std::int64_t kForever = INT64_MAX;
[[nodiscard]] std::int64_t monotonic_ns() noexcept;
[[nodiscard]] int cpu_count() noexcept;
[[nodiscard]] std::uint32_t process_id() noexcept;
/// Inode of this process's pid namespace, 0 if unknown.
[[nodiscard]] std::uint64_t pid_namespace() noexcept;
/// Start time of a process in clock ticks after boot, 0 if unknown.
[[nodiscard]] std::uint64_t start_time(std::uint32_t pid) noexcept;
/// Inode of a process's pidfd where it is unique (Linux 6.9 and later), else 0.
[[nodiscard]] std::uint64_t pidfs_inode(int pidfd) noexcept;
[[nodiscard]] int pidfd_open(std::uint32_t pid) noexcept;
/// True if the file of this inode is mapped by the process; true as well if that cannot be read.
[[nodiscard]] bool maps_inode(std::uint32_t pid, std::uint64_t inode) noexcept;
void random_bytes(void* out, std::size_t n) noexcept;

// ---- sleeping ----
/// Waits while *word == expected, until the monotonic time. 0 woken, else negative errno.
int futex_wait(const void* word, std::uint32_t expected, std::int64_t until_ns) noexcept;
void futex_wake(const void* word, int n) noexcept;
/// Registers for `barrier_all`; false where the kernel lacks it.
[[nodiscard]] bool register_barrier() noexcept;
/// A full barrier on every processor that runs a registered process.
bool barrier_all() noexcept;

// ---- memory ----
[[nodiscard]] int create_memfd() noexcept;
/// Allows no shrinking of the file and no change of seals.
[[nodiscard]] int seal(int fd) noexcept;
/// An own open file description of the same file.
[[nodiscard]] int reopen(int fd) noexcept;
[[nodiscard]] int duplicate(int fd) noexcept;
[[nodiscard]] int reserve(int fd, std::uint64_t offset, std::uint64_t length) noexcept;
struct FileId {
  std::uint64_t device, inode, size;
};
[[nodiscard]] int file_id(int fd, FileId& out) noexcept;
[[nodiscard]] int read_at(int fd, void* out, std::size_t n, std::uint64_t offset) noexcept;
[[nodiscard]] void* map(int fd, std::uint64_t length, int& error) noexcept;
void protect_gap(void* address, std::uint64_t length) noexcept;
void unmap(void* address, std::uint64_t length) noexcept;
void close_fd(int fd) noexcept;
[[nodiscard]] int move_fd(int from, int to) noexcept;
/// A private page that reads as zero after any fork, raw clone included.
[[nodiscard]] void* wipe_on_fork_page() noexcept;
struct MemoryLimits {
  std::uint64_t physical = 0;                  // bytes
  std::uint64_t available = 0;                 // MemAvailable
  std::uint64_t cgroup_limit = UINT64_MAX;     // the least limit above us
  std::uint64_t cgroup_headroom = UINT64_MAX;  // the least (limit - use + inactive file pages)
};
[[nodiscard]] MemoryLimits memory_limits() noexcept;

// ---- life bytes: open-file-description locks far beyond any file's end ----
[[nodiscard]] int lock_life_byte(int fd, std::uint32_t index) noexcept;
void unlock_life_byte(int fd, std::uint32_t index) noexcept;
/// 1 held by another description, 0 free, negative errno.
[[nodiscard]] int test_life_byte(int fd, std::uint32_t index) noexcept;

// ---- descriptors that ring ----
struct FdEvents {
  bool readable = false;
  bool hangup = false;
};
/// Waits until readable or hung up. 1 event, 0 timed out, negative errno.
int poll_fd(int fd, std::int64_t until_ns, FdEvents& out) noexcept;
int write_token(int fd, bool eventfd) noexcept;
void drain_token(int fd, bool eventfd) noexcept;

}  // namespace ipcbuf::platform
