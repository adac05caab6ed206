// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// attach.cpp - a segment somebody wrote over: attaching to it, burying its dead, its messages,
// its census. Whatever the bytes say: no crash, no endless loop, no sanitizer's report.
//
// Overview
//   The target of libFuzzer, or of main.cpp where there is no clang. A base image is made once,
//   by processes that are dead by then: channels of all kinds with messages in their rings and in
//   blocks, a chain of rings, shared blocks, a locked end, a run that was never cut. An input is a
//   list of changes to it. The image is never copied: `mmap` is wrapped, and maps it privately, so
//   that each input starts from a clean one and pays only for the pages it touches. No-go areas
//   around the mapping turn a wild index into a fault.
//
// An input: 2 bytes of head, then changes of 12 bytes each
//   head[0] % 8 == 0   deep: the checksum is made right behind the changes
//   else               shallow: changes go to the constants only, and their checksum stays
//   head[1]            odd: the file is shorter than it was
//   change             kind of table, row, word, operation, and 8 bytes of value
//
// What a living peer does is played: whoever else has a seat counts as gone (no process has its
// pid), and who waits for a lock of somebody that cannot be proven dead gets it after a while.
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>
#include <memory>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/fsck.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/ring.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/segment.hpp"
#include "ipcbuf/slots.hpp"
#include "ipcbuf/thread_heap.hpp"

using namespace ipcbuf;

namespace {

constexpr std::uint64_t kSize = 1U << 20;  // payload of the base image, all of it committed
constexpr std::size_t kNoGo = std::size_t{1} << 36;
constexpr int kPatience = 3;  // waits until the playing owner lets go of a lock
constexpr std::size_t kChange = 12;
constexpr std::size_t kMaxChanges = 24;

[[noreturn]] void broken(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// ---- the base image ----

struct Base {
  int fd = -1;
  std::size_t length = 0;
  alignas(64) unsigned char header[4096];
  Constants constants{};
  std::uint32_t channels = 0;
  std::vector<std::uint64_t> blocks;  // offsets of headers, used blocks first
  std::vector<std::uint64_t> rings;   // offsets of their blocks
  std::vector<std::uint64_t> values;  // what is worth writing somewhere else
} base;

/// What the child that made the image tells us.
struct Notes {
  std::uint64_t blocks[64];
  std::uint64_t rings[16];
  std::uint32_t block_count, ring_count;
};

std::uint64_t block_for(Segment& s, std::uint64_t length) {
  Failure why;
  std::uint64_t at = 0;
  if (ThreadHeap::of(s).allocate(length, at, why) != Status::kOk) broken("no block");
  return at;
}

void send(Segment& s, SenderEnd& tx, std::uint32_t payload, std::uint32_t blocks) {
  Outgoing m;
  static const char bytes[kMaxInline] = {};
  m.payload = bytes;
  m.payload_size = payload;
  m.block_count = blocks;
  for (std::uint32_t i = 0; i < blocks; ++i) m.blocks[i] = {block_for(s, 300 + i), 300 + i};
  Failure why;
  if (tx.try_send(m, 0, why) != Status::kOk) broken("not sent");
}

std::uint32_t make_channel(Segment& s, bool shared, std::uint64_t max_items) {
  ChannelOptions options;
  options.shared = shared;
  options.max_items = max_items;
  Failure why;
  std::uint32_t id = 0;
  if (create_channel(s, options, id, why) != Status::kOk) broken("no channel");
  return id;
}

/// Runs in a process of its own, which dies with all it holds.
void make_image(int fd, Notes& notes) {
  Failure why;
  const auto segment = Segment::create(kSize, why);
  if (!segment) broken("no segment");
  Segment& s = *segment;
  const std::uint32_t plain = make_channel(s, false, 0);
  const std::uint32_t shared = make_channel(s, true, 0);
  const std::uint32_t bounded = make_channel(s, true, 4);
  const std::uint32_t ended = make_channel(s, false, 0);
  SenderEnd to_plain(s, plain), to_shared(s, shared), to_bounded(s, bounded), to_ended(s, ended);
  ReceiverEnd from_plain(s, plain);
  for (int i = 0; i < 3; ++i) send(s, to_plain, 40, 0);
  send(s, to_plain, 0, 3);
  Incoming in;
  if (from_plain.try_receive(in, 0) != Status::kOk) broken("not received");
  for (int i = 0; i < 20; ++i) send(s, to_shared, 2000, i % 4 == 0 ? 1 : 0);  // links a ring
  for (int i = 0; i < 4; ++i) send(s, to_bounded, 8, 0);
  send(s, to_ended, 8, 1);
  to_ended.close();
  (void)hold_in_transit(s, shared, End::kReceiver);
  HoldList& holds = hold_list(s, bounded, End::kReceiver);  // chains an entry
  for (std::uint32_t i = 0; i < 9; ++i) (void)add_hold(s, holds, {HoldKind::kTransit, i + 1, 1});
  const std::uint64_t view = block_for(s, 5000);
  if (share_block(s, view, make_token(1, 1)) != Status::kOk) broken("not shared");
  (void)block_for(s, 100'000);
  std::uint32_t run = 0;
  if (RunHeap(s).allocate(2, run, why) != Status::kOk) broken("no run");
  if (!s.channel(index_of(bounded)).sender.lock.try_acquire(s.token())) broken("no lock");

  for (std::uint32_t page = 0; page < s.committed_pages();) {
    const Run r = Run::unpack(s.run(page).load());
    BlockPlace p{};
    for (std::uint32_t i = 0; r.state == RunState::kSlab && i < 64; ++i) {
      Holder holder{};
      if (!s.place(s.page_offset(page), p) || i >= p.count) break;
      const std::uint64_t at = p.offset + i * p.size();
      if (!s.place(at, p) || !read_holder(s, p, holder)) break;
      p.offset = s.page_offset(page);
      if (holder.kind == HolderKind::kChannel && notes.ring_count < std::size(notes.rings))
        notes.rings[notes.ring_count++] = at;
      if ((holder.kind != HolderKind::kFree || i < 2) &&
          notes.block_count < std::size(notes.blocks))
        notes.blocks[notes.block_count++] = at;
    }
    page += r.length;
  }
  struct stat st{};
  ::fstat(s.fd(), &st);
  std::vector<char> copy(static_cast<std::size_t>(st.st_size));
  if (::pread(s.fd(), copy.data(), copy.size(), 0) != st.st_size ||
      ::pwrite(fd, copy.data(), copy.size(), 0) != st.st_size)
    broken("no copy");
  ::_exit(0);
}

void make_base() {
  base.fd = platform::create_memfd();
  const int shared = platform::create_memfd();
  if (base.fd < 0 || shared < 0 || ::ftruncate(shared, sizeof(Notes)) != 0) broken("no file");
  const pid_t child = ::fork();
  if (child == 0) {
    auto* notes = static_cast<Notes*>(
        ::mmap(nullptr, sizeof(Notes), PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0));
    make_image(base.fd, *notes);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  Notes notes{};
  struct stat st{};
  if (status != 0 || ::pread(shared, &notes, sizeof notes, 0) != sizeof notes ||
      ::fstat(base.fd, &st) != 0 || ::pread(base.fd, base.header, 4096, 0) != 4096)
    broken("no image");
  ::close(shared);
  std::memcpy(&base.constants, base.header, sizeof base.constants);
  base.length = static_cast<std::size_t>(st.st_size);
  base.blocks.assign(notes.blocks, notes.blocks + notes.block_count);
  base.rings.assign(notes.rings, notes.rings + notes.ring_count);
  base.channels = 4;
  const Constants& c = base.constants;
  base.values = {0,
                 1,
                 2,
                 3,
                 4,
                 0x7FFFFFFF,
                 1U << 31,
                 0xFFFFFFFF,
                 ~0ULL,
                 1ULL << 63,
                 c.max_pages,
                 c.max_pages - 1,
                 c.payload,
                 c.window,
                 c.slots,
                 make_token(0, 1),
                 make_token(1, 1),
                 make_token(1, 2),
                 make_id(0, 0),
                 make_id(1, 0),
                 make_id(4095, 1),
                 kMinRing,
                 16,
                 1ULL << 32};
  for (const auto at : base.blocks) base.values.push_back(at);
  if (base.blocks.empty() || base.rings.size() < 5) broken("a poor image");
}

// ---- the input ----

struct Input {
  const unsigned char* bytes = nullptr;
  std::size_t size = 0;
  bool deep = false;
  std::size_t file_size = 0;
  unsigned char* mapping = nullptr;
  std::int64_t clock = 0;
  std::uint64_t waits = 0;
} input;

std::uint64_t checksum_of(const unsigned char* header) {
  // As segment.cpp does it; a test of this file's own says so if the two differ.
  const auto mix = [](std::uint64_t x) {
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9;
    x ^= x >> 32;
    return x;
  };
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < offsetof(Constants, checksum) / 8; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, header + i * 8, 8);
    sum = mix(sum ^ word) + i;
  }
  return sum;
}

/// The offset that a change is about, a multiple of 8.
std::uint64_t place_of(const unsigned char* change, std::uint64_t value) {
  const Constants& c = base.constants;
  const std::uint64_t row = change[1], word = change[2];
  if (!input.deep) return word % 24 * 8;
  switch (change[0] % 12) {
    case 0:
      return row % 2 == 0 ? 192 + word % 40 * 8 : word % 24 * 8;  // mostly what may change
    case 1:
      return c.slots + row % 3 * sizeof(SlotRow) + word % 8 * 8;
    case 2:
    case 3:
      return c.channels + row % base.channels * sizeof(ChannelRow) + word % 64 * 8;
    case 4:
      return c.entries + row % 3 * sizeof(SharedEntry) + word % 16 * 8;
    case 5:
      return c.runs + row % c.max_pages * 8;
    case 6:
      return c.pages + row % c.max_pages * sizeof(PageInfo) + word % 5 * 8;
    case 7:
      return c.index + row % 4 * 8;
    case 8:
      return base.blocks[row % base.blocks.size()] + word % 8 * 8;
    case 9:
      return base.rings[row % base.rings.size()] + sizeof(BlockHeader) + word % 24 * 8;
    case 10:  // the first records
      return base.rings[row % base.rings.size()] + kRingOverhead + word * 8;
    default:
      return (value >> 20) % (base.constants.window / 8) * 8;
  }
}

std::uint64_t changed(std::uint64_t old, unsigned operation, std::uint64_t value) {
  const std::uint64_t pick = base.values[value % base.values.size()];
  switch (operation % 10) {
    case 0:
      return value;
    case 1:
      return old + value % 64 - 32;
    case 2:
      return old ^ 1ULL << value % 64;
    case 3:
      return (old & ~0xFFFFFFFFULL) | (value & 0xFFFFFFFF);
    case 4:
      return (old & 0xFFFFFFFF) | value << 32;
    case 5:
      return (old & ~(0xFFULL << value % 8 * 8)) | (value >> 8 & 0xFF) << value % 8 * 8;
    case 6:
      return pick;
    case 7:
      return (old & ~0xFFFFFFFFULL) | (pick & 0xFFFFFFFF);
    case 8:
      return (old & 0xFFFFFFFF) | pick << 32;
    default:
      return old + (value % 3 - 1) * 16;
  }
}

/// Puts the changes below `limit` into `image`.
void apply(unsigned char* image, std::uint64_t limit) {
  std::size_t at = 2;
  for (std::size_t n = 0; n < kMaxChanges && at + kChange <= input.size; ++n, at += kChange) {
    const unsigned char* change = input.bytes + at;
    std::uint64_t value = 0;
    std::memcpy(&value, change + 4, 8);
    const std::uint64_t where = place_of(change, value);
    const std::uint64_t gap = base.constants.payload - kGuardGap;
    if (where + 8 > limit || (where >= gap && where < base.constants.payload)) continue;
    std::uint64_t word = 0;
    std::memcpy(&word, image + where, 8);
    word = changed(word, change[3], value);
    std::memcpy(image + where, &word, 8);
  }
  if (input.deep) {
    const std::uint64_t sum = checksum_of(image);
    std::memcpy(image + offsetof(Constants, checksum), &sum, 8);
  }
}

/// What lies between two areas that nobody may touch, at the same place for every input.
unsigned char* window() {
  static unsigned char* const at = [] {
    void* p =
        ::mmap(nullptr, 2 * kNoGo, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) broken("no address space");
    return static_cast<unsigned char*>(p) + kNoGo;
  }();
  return at;
}

// ---- what a user of the segment does ----

void use_channel(Segment& s, std::uint32_t index) {
  ChannelRow& row = s.channel(index);
  const std::uint32_t id = channel_id(index, row);
  if (open_channel(s, id, End::kReceiver, 0) != Status::kOk) return;
  if (open_channel(s, id, End::kSender, 0) != Status::kOk) return;
  // A peer that writes our own new token into a lock is beyond what can be told from ourselves.
  for (EndRow* end : {&row.sender, &row.receiver})
    if (end->lock.owner() == s.token()) end->lock.reset();
  SenderEnd tx(s, id);
  ReceiverEnd rx(s, id);
  Wait wait;
  (void)rx.poll_slice(0, wait);
  Incoming in;
  for (int i = 0; i < 3; ++i) {
    if (rx.try_receive(in, 0) != Status::kOk) break;
    for (std::uint32_t b = 0; b < in.block_count; ++b) {
      if (b == 0) (void)share_block(s, in.blocks[b].offset, make_token(2, 1));
      (void)drop_block(s, in.blocks[b].offset);
    }
  }
  Outgoing m;
  static const char text[64] = {};
  m.payload = text;
  m.payload_size = 64;
  Failure why;
  (void)tx.try_send(m, 0, why);
  m.payload_size = 0;
  m.block_count = 1;
  m.blocks[0].length = 3000;
  if (ThreadHeap::of(s).allocate(3000, m.blocks[0].offset, why) == Status::kOk &&
      tx.try_send(m, 0, why) != Status::kOk)
    (void)free_block(s, m.blocks[0].offset);
  (void)hold_in_transit(s, id, End::kSender);
  tx.close();
  rx.close();
}

}  // namespace

// ---- the wrapped calls of the core (see CMakeLists.txt) ----

extern "C" {
void* __real_mmap(void*, std::size_t, int, int, int, off_t);
int __real_munmap(void*, std::size_t);
ssize_t __real_pread(int, void*, std::size_t, off_t);
int __real_fstat(int, struct stat*);
long __real_syscall(long, ...);
int __real_clock_gettime(clockid_t, timespec*);

void* __wrap_mmap(void* at, std::size_t length, int protection, int flags, int fd, off_t offset) {
  if (input.bytes == nullptr || (flags & MAP_SHARED) == 0)
    return __real_mmap(at, length, protection, flags, fd, offset);
  if (length > base.constants.window) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  void* p = __real_mmap(window(), length, protection, MAP_PRIVATE | MAP_FIXED, fd, offset);
  if (p == MAP_FAILED) broken("no mapping");
  input.mapping = static_cast<unsigned char*>(p);
  apply(input.mapping, input.file_size);
  const std::size_t end = (input.file_size + 4095) / 4096 * 4096;
  if (end < length)  // as behind the end of a shorter file
    ::mprotect(input.mapping + end, length - end, PROT_NONE);
  return p;
}

int __wrap_munmap(void* p, std::size_t length) {
  if (p != input.mapping || p == nullptr) return __real_munmap(p, length);
  input.mapping = nullptr;
  return __real_mmap(p, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                     -1, 0) == MAP_FAILED
             ? -1
             : 0;
}

ssize_t __wrap_pread(int fd, void* out, std::size_t n, off_t offset) {
  if (input.bytes == nullptr || n > 4096) return __real_pread(fd, out, n, offset);
  alignas(64) unsigned char header[4096];
  std::memcpy(header, base.header, sizeof header);
  apply(header, sizeof header);
  const auto end = static_cast<off_t>(std::min<std::size_t>(input.file_size, sizeof header));
  const off_t got = std::min<off_t>(static_cast<off_t>(n), std::max<off_t>(0, end - offset));
  std::memcpy(out, header + offset, static_cast<std::size_t>(got));
  return got;
}

int __wrap_fstat(int fd, struct stat* out) {
  const int r = __real_fstat(fd, out);
  if (input.bytes != nullptr && fd == base.fd) out->st_size = static_cast<off_t>(input.file_size);
  return r;
}

int __wrap_clock_gettime(clockid_t id, timespec* out) {
  if (input.bytes == nullptr) return __real_clock_gettime(id, out);
  input.clock += 100;
  out->tv_sec = static_cast<time_t>(input.clock / 1'000'000'000);
  out->tv_nsec = static_cast<long>(input.clock % 1'000'000'000);
  return 0;
}

long __wrap_syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& x : a) x = va_arg(list, long);
  va_end(list);
  if (input.bytes != nullptr) {
    if (number == SYS_pidfd_open && a[0] != ::getpid()) {
      errno = ESRCH;
      return -1;
    }
    if (number == SYS_futex && a[1] != FUTEX_WAKE) {
      input.clock += 5'000'000;
      if (++input.waits % kPatience == 0) {
        auto* word = reinterpret_cast<std::atomic<std::uint32_t>*>(a[0]);
        *word = 0;
      }
      errno = ETIMEDOUT;
      return -1;
    }
    if (number == SYS_futex) return 0;
  }
  return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
}

std::uint64_t fuzz_deep_inputs = 0;

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size) {
  if (base.fd < 0) make_base();
  static const unsigned char none[2] = {};
  input = {};
  input.bytes = size < 2 ? none : bytes;
  input.size = size < 2 ? 2 : size;
  input.deep = input.bytes[0] % 8 == 0;
  input.clock = 1'000'000'000;
  input.file_size = base.length;
  if (input.bytes[1] % 2 == 1) input.file_size = base.length / 128 * (input.bytes[1] / 2U);

  Failure why;
  if (auto segment = Segment::attach(base.fd, why)) {
    ++fuzz_deep_inputs;
    Segment& s = *segment;
    const bool untouched = input.size < 2 + kChange;
    (void)take_census(s, true);
    reap_all(s);
    if (untouched && (!take_census(s, true).problems.empty() || s.is_poisoned()))
      broken("the base image is not sound");
    for (std::uint32_t i = 0; i < base.channels; ++i) use_channel(s, i);
    ThreadHeap::of(s).trim();
    steal_empty_slabs(s);
    (void)take_census(s, false);
    if (untouched && !take_census(s, true).problems.empty()) broken("unsound behind its use");
  }
  input = {};
  return 0;
}
