// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// platform.hpp - the only system calls of the core. One folder below platform/ per system.
// Calls that can fail return a negative errno; none throws.
#pragma once

#include <atomic>
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
/// Runs `body(argument)` in a thread of its own that takes no signals and is never joined.
[[nodiscard]] int start_thread(void (*body)(void*), void* argument) noexcept;
void random_bytes(void* out, std::size_t n) noexcept;

// ---- sleeping ----
/// Waits while *word == expected, until the monotonic time. 0 woken, else negative errno.
int futex_wait(const void* word, std::uint32_t expected, std::int64_t until_ns) noexcept;
void futex_wake(const void* word, int n) noexcept;
struct FutexWait {
  const void* word;
  std::uint32_t expected;
};
inline constexpr std::size_t kMaxFutexWaits = 128;
/// False where the kernel is older than 5.16, or a filter forbids the call.
[[nodiscard]] bool has_futex_wait_any() noexcept;
/// As `futex_wait`, on up to kMaxFutexWaits words at once.
int futex_wait_any(const FutexWait* waits, std::size_t n, std::int64_t until_ns) noexcept;
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
/// Gives the memory of a range back; it reads as zero, and has to be reserved before it is written.
[[nodiscard]] int punch(int fd, std::uint64_t offset, std::uint64_t length) noexcept;
/// Size of the file system that the file is in, and what is free there; 0 and 0: it has no limit.
void file_system_room(int fd, std::uint64_t& size, std::uint64_t& free) noexcept;
/// The largest size that a file of this process may have (RLIMIT_FSIZE).
[[nodiscard]] std::uint64_t file_size_limit() noexcept;
struct FileId {
  std::uint64_t device, inode, size;
};
[[nodiscard]] int file_id(int fd, FileId& out) noexcept;
[[nodiscard]] int read_at(int fd, void* out, std::size_t n, std::uint64_t offset) noexcept;
[[nodiscard]] void* map(int fd, std::uint64_t length, int& error) noexcept;
/// Maps over what is mapped at `address`; 0 or a negative errno.
[[nodiscard]] int map_again(void* address, int fd, std::uint64_t length) noexcept;
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
  std::uint64_t cgroup_headroom = UINT64_MAX;  // the least (95 % of limit - use + inactive file)
};
[[nodiscard]] MemoryLimits memory_limits() noexcept;

// ---- life bytes: open-file-description locks far beyond any file's end ----
[[nodiscard]] int lock_life_byte(int fd, std::uint32_t index) noexcept;
void unlock_life_byte(int fd, std::uint32_t index) noexcept;
/// 1 held by another description, 0 free, negative errno.
[[nodiscard]] int test_life_byte(int fd, std::uint32_t index) noexcept;
/// The same for the life bytes of all processes together.
[[nodiscard]] int test_life_bytes(int fd) noexcept;
/// One more byte: shared by who is on his way in, alone by who takes the file's name away.
/// 0 ours now, -EAGAIN somebody else's, negative errno.
enum class Gate { kShared, kAlone };
[[nodiscard]] int try_gate(int fd, Gate gate) noexcept;
void leave_gate(int fd) noexcept;

// ---- files with a name ----
enum class FileKind : std::uint32_t { kFile, kDirectory, kLink, kOther };
struct FileStatus {
  std::uint64_t device = 0, inode = 0, size = 0;
  std::uint64_t memory = 0;  // bytes that are really taken
  std::uint32_t owner = 0, mode = 0, links = 0;
  FileKind kind = FileKind::kOther;
};
struct FileSystem {
  bool is_memory = false;
  std::uint64_t size = 0, free = 0;  // bytes
};
[[nodiscard]] std::uint32_t effective_user() noexcept;
/// "" if it is not set, or not to be trusted.
[[nodiscard]] const char* environment(const char* name) noexcept;
[[nodiscard]] int file_status(int fd, FileStatus& out) noexcept;
/// Of the name itself, never of what a link leads to. `directory` -1: the name is a path.
[[nodiscard]] int status_at(int directory, const char* name, FileStatus& out) noexcept;
[[nodiscard]] int file_system(int fd, FileSystem& out) noexcept;
/// Open to nobody but us.
[[nodiscard]] int make_directory(const char* path) noexcept;
[[nodiscard]] int open_directory(const char* path) noexcept;
[[nodiscard]] int make_private(int fd, bool directory) noexcept;
[[nodiscard]] int open_at(int directory, const char* name) noexcept;
/// A file without a name yet; a negative errno where the file system cannot do that.
[[nodiscard]] int create_nameless(int directory) noexcept;
[[nodiscard]] int give_name(int fd, int directory, const char* name) noexcept;
/// A new file, never an existing one.
[[nodiscard]] int create_at(int directory, const char* name) noexcept;
[[nodiscard]] int link_at(int directory, const char* from, const char* to) noexcept;
[[nodiscard]] int unlink_at(int directory, const char* name) noexcept;
/// Calls `visit` for each name until it says false.
int list_directory(int directory, bool (*visit)(void* context, const char* name),
                   void* context) noexcept;
void pause_ms(int milliseconds) noexcept;

// ---- files that may be cut short ----
/// The file is sealed, so that nobody can.
[[nodiscard]] bool cannot_shrink(int fd) noexcept;
/// From now on a touch behind the file's end reads zeros and sets `flag`, instead of a SIGBUS.
/// False: not here, or turned off by IPCBUF_SIGBUS=0.
bool guard_mapping(void* address, std::uint64_t length, std::atomic<std::uint32_t>& flag) noexcept;
void unguard_mapping(void* address) noexcept;

// ---- descriptors that ring ----
struct FdEvents {
  bool readable = false;
  bool hangup = false;
};
[[nodiscard]] int make_eventfd(unsigned count) noexcept;
/// As the system's pollfd.
struct PollFd {
  int fd;
  short wanted;
  short seen;
};
inline constexpr short kReadable = 1;
inline constexpr short kHangup = 0x18;   // or an error
inline constexpr short kNotOpen = 0x20;  // the descriptor
/// How many have events, 0 timed out, negative errno.
int poll_many(PollFd* fds, std::size_t n, std::int64_t until_ns) noexcept;
/// Waits until readable or hung up. 1 event, 0 timed out, negative errno.
int poll_fd(int fd, std::int64_t until_ns, FdEvents& out) noexcept;
int write_token(int fd, bool eventfd) noexcept;
void drain_token(int fd, bool eventfd) noexcept;

}  // namespace ipcbuf::platform
