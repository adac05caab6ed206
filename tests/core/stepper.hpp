// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// stepper.hpp - kills a process at every machine instruction, without killing it.
//
// Overview
//   A scenario runs in a child that is stepped with ptrace, one instruction at a time. A kill
//   leaves exactly the stores of the instructions that were executed, so what the segment holds
//   after an instruction is what a SIGKILL there would leave. Whenever the segment differs from
//   its last image it is copied into another memory file, and on the copy
//     1 a survivor attaches and buries every process but the tracer
//     2 the census must find no problem and nothing that belongs to nobody
//     3 a second recovery must change nothing
//     4 what is left must be what was there before or after the step of the scenario that was
//       under way: nothing in between, nothing leaked
//     5 messages come out whole, in order, each once; none is lost whose `send` had returned
//     6 allocation works, and a last census finds no problem.
//
//   A scenario may have a victim: a process that is stepped to a chosen point and then really
//   killed, so that the stepped process is the one that takes over or buries.
//
// The tracer is the living owner of what it set up; every other process counts as dead.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/fsck.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/segment.hpp"
#include "ipcbuf/slots.hpp"
#include "ipcbuf/thread_heap.hpp"
#include "ipcbuf/ticket.hpp"

extern "C" char __executable_start;

namespace stepper {

using namespace ipcbuf;

inline constexpr int kDone = 1000;
inline constexpr int kFailed = -1;
inline constexpr std::size_t kChannels = 2;

/// Shared by tracer and children, beside the segment.
struct Page {
  std::atomic<int> op;                             // the step of the scenario that is under way
  std::atomic<int> line;                           // of a step that failed
  std::atomic<std::uint64_t> sent[kChannels];      // last number whose `send` has returned
  std::atomic<std::uint64_t> received[kChannels];  // last number whose `receive` has returned
  std::atomic<std::uint64_t> values[8];            // of the scenario's own
};

template <class T>
T* shared_page() {
  void* p = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return new (p) T{};
}

struct World {
  std::shared_ptr<Segment> s;
  Page* page = shared_page<Page>();
  std::vector<std::uint32_t> channels;
  std::vector<std::unique_ptr<SenderEnd>> tx;
  std::vector<std::unique_ptr<ReceiverEnd>> rx;
  std::vector<LiveView*> views;
  std::vector<pid_t> helpers;  // ended with the scenario
  int eventfd = -1;

  [[nodiscard]] Segment& segment() { return *s; }
  void op(int n) { page->op.store(n); }
};

/// In a scenario: what must hold, or the scenario itself is wrong.
#define REQUIRE(w, condition)                            \
  do {                                                   \
    if (!(condition)) ::stepper::give_up((w), __LINE__); \
  } while (false)

[[noreturn]] inline void give_up(World& w, int line) {
  std::fprintf(stderr, "line %d: the scenario does not hold\n", line);
  w.page->line.store(line);
  w.page->op.store(kFailed);
  ::_exit(99);
}

// ---- messages whose content can be checked ----

inline unsigned char pattern(std::uint64_t number, std::uint32_t block) {
  return static_cast<unsigned char>(number * 37 + block * 11 + 1);
}

inline std::uint32_t add_channel(World& w, const ChannelOptions& options) {
  Failure why;
  std::uint32_t id = 0;
  REQUIRE(w, create_channel(*w.s, options, id, why) == Status::kOk);
  w.channels.push_back(id);
  w.tx.push_back(std::make_unique<SenderEnd>(*w.s, id));
  w.rx.push_back(std::make_unique<ReceiverEnd>(*w.s, id));
  return id;
}

/// Sends the channel's next number, padded to `size` bytes, with `blocks` blocks of `length`.
inline Status send(World& w, std::size_t channel, std::uint32_t size, std::uint32_t blocks = 0,
                   std::uint64_t length = 0) {
  const std::uint64_t number = w.page->sent[channel].load() + 1;
  static unsigned char text[kMaxInline];
  std::memset(text, pattern(number, 99), size);
  std::memcpy(text, &number, sizeof number);
  static Outgoing m;
  m = {};
  Failure why;
  if (w.tx[channel]->is_leased()) {
    std::uint64_t at = 0;
    REQUIRE(w, ThreadHeap::of(*w.s).allocate(size, at, why) == Status::kOk);
    std::memcpy(w.s->payload(at), text, size);
    m.payload_in_block = true;
    m.block_count = 1;
    m.blocks[0] = {at, size};
    const Status status = w.tx[channel]->try_send(m, platform::kForever, why);
    if (status == Status::kOk) w.page->sent[channel].store(number);
    return status;
  }
  m.payload = text;
  m.payload_size = size;
  m.block_count = blocks;
  for (std::uint32_t i = 0; i < blocks; ++i) {
    std::uint64_t at = 0;
    REQUIRE(w, ThreadHeap::of(*w.s).allocate(length, at, why) == Status::kOk);
    std::memset(w.s->payload(at), pattern(number, i), length);
    m.blocks[i] = {at, length};
  }
  const Status status = w.tx[channel]->try_send(m, platform::kForever, why);
  if (status == Status::kOk) w.page->sent[channel].store(number);
  return status;
}

/// The number in a message, 0 if any byte of it is wrong.
inline std::uint64_t number_of(Segment& s, const Incoming& m) {
  std::uint64_t number = 0;
  if (m.lease != 0) {
    if (m.block_count != 1 || m.blocks[0].length < 8) return 0;
    const auto* bytes = reinterpret_cast<const unsigned char*>(s.payload(m.blocks[0].offset));
    std::memcpy(&number, bytes, sizeof number);
    for (std::uint64_t i = 8; i < m.blocks[0].length; ++i)
      if (bytes[i] != pattern(number, 99)) return 0;
    return number;
  }
  if (m.payload_size < 8) return 0;
  std::memcpy(&number, m.payload, sizeof number);
  for (std::uint32_t i = 8; i < m.payload_size; ++i)
    if (static_cast<unsigned char>(m.payload[i]) != pattern(number, 99)) return 0;
  for (std::uint32_t b = 0; b < m.block_count; ++b) {
    std::uint64_t at = m.blocks[b].offset;
    std::uint64_t length = m.blocks[b].length;
    if (is_ticket(s, at) && read_ticket(s, at, at, length) != Status::kOk) return 0;
    const auto* bytes = reinterpret_cast<const unsigned char*>(s.payload(at));
    for (std::uint64_t i = 0; i < length; i += 61)
      if (bytes[i] != pattern(number, b)) return 0;
  }
  return number;
}

/// Takes a message; its blocks stay ours.
inline Status receive(World& w, std::size_t channel, Incoming& m) {
  const Status status = w.rx[channel]->try_receive(m, platform::kForever);
  if (status == Status::kOk && m.lease == 0) {
    std::uint64_t number = 0;
    std::memcpy(&number, m.payload, sizeof number);
    w.page->received[channel].store(number);
  }
  return status;
}

// ---- scenarios ----

struct Role {
  std::function<void(World&)> prepare = [](World&) {};  // not stepped
  std::function<void(World&)> act{};                    // stepped
};

struct Scenario {
  std::string name;
  std::uint64_t max_size = 4U << 20;
  std::function<void(World&)> set_up = [](World&) {};  // by the tracer
  Role stepped{};
  Role victim{};                                            // stepped to its end, then killed
  std::function<bool(World&)> victim_ends = {};             // asked at each of its changes
  std::function<void(World&)> after_forks = [](World&) {};  // by the tracer
  bool attaches = false;        // the stepped process is forked before the segment is made
  bool follows_fork = false;    // step the child that the stepped process makes, too
  bool in_between = false;      // what is left may lie between before and after (several commits)
  bool leaves_nothing = false;  // whatever it did, its death leaves what was there before
  bool vanishing = false;       // the channels may be gone with the stepped process
  bool own_pool = true;         // part of the two-deep run
};

// ---- what a recovery may look at ----

class Image {
 public:
  /// Remembers the recovery-relevant bytes of the segment.
  void take(Segment& s) {
    ranges_.clear();
    const Constants& c = s.constants();
    auto* base = reinterpret_cast<std::byte*>(&s.header());
    Header& h = s.header();
    add(base + sizeof(Constants), sizeof(Header) - sizeof(Constants));
    add(&s.slot(0), (h.slots_high.load() + 4) * sizeof(SlotRow));
    add(&s.channel(0), (h.channels_high.load() + 1) * sizeof(ChannelRow));
    add(&s.entry(0), (h.entries_high.load() + 1) * sizeof(SharedEntry));
    add(&s.run(0), c.max_pages * 8ULL);
    add(&s.page(0), c.max_pages * sizeof(PageInfo));
    add(s.run_index(), c.max_pages * 4ULL);
    if (const std::uint32_t bits = h.directory_bits.load(); bits != 0)
      add(s.key_table(), 4ULL << bits);
    const std::uint32_t end = s.committed_pages();
    for (std::uint32_t p = 0; p < end;) {
      const Run run = Run::unpack(s.run(p).load());
      if (run.length == 0) break;
      BlockPlace place{};
      if (run.state == RunState::kSlab && s.place(s.page_offset(p), place)) {
        for (std::uint32_t i = 0; i < place.count; ++i) {
          BlockHeader& block = s.block(place.offset + i * place.size());
          const bool ring = Holder::unpack(block.holder.load()).kind == HolderKind::kChannel;
          add(&block, ring ? place.size() : sizeof(BlockHeader));
        }
      }
      p += run.length;
    }
    bytes_.clear();
    for (const auto& [at, length] : ranges_) bytes_.insert(bytes_.end(), at, at + length);
  }
  [[nodiscard]] bool is_changed() const noexcept {
    const std::byte* seen = bytes_.data();
    for (const auto& [at, length] : ranges_) {
      if (std::memcmp(at, seen, length) != 0) return true;
      seen += length;
    }
    return false;
  }
  [[nodiscard]] std::uint64_t hash() const noexcept {
    std::uint64_t h = 0xCBF29CE484222325;
    std::size_t i = 0;
    for (; i + 8 <= bytes_.size(); i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes_.data() + i, 8);
      h = (h ^ word) * 0x9E3779B97F4A7C15;
      h ^= h >> 29;
    }
    return h;
  }
  /// Forgets what every recovery counts up.
  void blank_statistics(Segment& s) {
    Header& h = s.header();
    for (void* word : {static_cast<void*>(&h.reap_hint), static_cast<void*>(&h.death_epoch)})
      blank(word, 4);
    for (void* word : {static_cast<void*>(&h.reaps), static_cast<void*>(&h.takeovers)})
      blank(word, 8);
  }
  /// Empty if equal, else where the first difference lies.
  [[nodiscard]] std::string difference(const Image& other, Segment& s) const {
    if (bytes_.size() != other.bytes_.size()) return "other blocks";
    std::size_t i = 0;
    for (const auto& [at, length] : ranges_) {
      for (std::size_t k = 0; k < length; ++k, ++i) {
        if (bytes_[i] == other.bytes_[i]) continue;
        char text[64];
        std::snprintf(text, sizeof text, "at offset %#zx",
                      static_cast<std::size_t>(at + k - reinterpret_cast<std::byte*>(&s.header())));
        return text;
      }
    }
    return {};
  }

 private:
  void add(const void* at, std::size_t length) {
    ranges_.emplace_back(static_cast<const std::byte*>(at), length);
  }
  void blank(const void* word, std::size_t size) {
    std::size_t from = 0;
    for (const auto& [at, length] : ranges_) {
      const auto* w = static_cast<const std::byte*>(word);
      if (w >= at && w + size <= at + length) std::memset(bytes_.data() + from + (w - at), 0, size);
      from += length;
    }
  }
  std::vector<std::pair<const std::byte*, std::size_t>> ranges_;
  std::vector<std::byte> bytes_;
};

/// What the living have after a recovery.
struct Key {
  std::uint64_t process_blocks, flight_blocks, ring_blocks, shared_blocks;
  std::uint64_t channels, messages, entries, used_bytes;
  bool operator==(const Key&) const = default;
  [[nodiscard]] bool is_between(const Key& a, const Key& b) const {
    const auto in = [](std::uint64_t x, std::uint64_t m, std::uint64_t n) {
      return std::min(m, n) <= x && x <= std::max(m, n);
    };
    return in(process_blocks, a.process_blocks, b.process_blocks) &&
           in(flight_blocks, a.flight_blocks, b.flight_blocks) &&
           in(ring_blocks, a.ring_blocks, b.ring_blocks) &&
           in(shared_blocks, a.shared_blocks, b.shared_blocks) &&
           in(channels, a.channels, b.channels) && in(messages, a.messages, b.messages) &&
           in(entries, a.entries, b.entries) && in(used_bytes, a.used_bytes, b.used_bytes);
  }
  [[nodiscard]] std::string text() const {
    char out[200];
    std::snprintf(out, sizeof out,
                  "held %lu flight %lu rings %lu shared %lu channels %lu messages %lu entries %lu "
                  "used %lu",
                  process_blocks, flight_blocks, ring_blocks, shared_blocks, channels, messages,
                  entries, used_bytes);
    return out;
  }
};

struct Figures {
  std::uint64_t boundaries = 0;  // instructions after which the process might have been killed
  std::uint64_t changes = 0;     // of these, those that changed the segment
  std::uint64_t states = 0;      // distinct images, each recovered twice and checked
  std::uint64_t failures = 0;
};

class Run1 {
 public:
  Run1(const Scenario& scenario, Figures& figures) : scenario_(scenario), figures_(figures) {}

  /// `victim_change` > 0: the victim is killed at that one of its changes.
  void run(std::uint64_t victim_change = 0) {
    pin();
    int pipe_fds[2] = {-1, -1};
    pid_t stepped = 0;
    if (scenario_.attaches) {
      if (::pipe(pipe_fds) != 0) std::abort();
      stepped = fork_role(scenario_.stepped, pipe_fds[0]);
    }
    Failure why;
    w_.s = Segment::create(scenario_.max_size, why);
    if (!w_.s) return report("Segment::create refused");
    token_ = w_.s->token();
    scenario_.set_up(w_);
    pid_t victim = 0;
    if (scenario_.victim.act) victim = fork_role(scenario_.victim);
    if (scenario_.attaches) {
      w_.page->values[7].store(static_cast<std::uint64_t>(w_.s->fd()));
      (void)!::write(pipe_fds[1], "x", 1);
      if (!wait_stopped(stepped)) return report("the stepped process did not start");
    } else {
      stepped = fork_role(scenario_.stepped);
    }
    if (failed_) return;
    scenario_.after_forks(w_);
    make_copy();
    if (victim != 0) {
      std::uint64_t change = 0;
      const bool ended = step(victim, [&] {
        ++change;
        if (victim_change != 0) return change < victim_change;
        return !(scenario_.victim_ends && scenario_.victim_ends(w_));
      });
      ::kill(victim, SIGKILL);
      (void)wait_end(victim);
      if (failed_) return;
      if (!ended && scenario_.victim_ends && victim_change == 0)
        return report("the victim never came to its end");
    }
    w_.op(0);
    judge(stepped);
    if (scenario_.follows_fork && grandchild_ != 0 && !failed_) {
      w_.op(0);
      keys_.clear();
      pending_.clear();
      ::kill(stepped, SIGKILL);
      (void)wait_end(stepped);
      judge(grandchild_);
    }
    for (const pid_t pid : {stepped, grandchild_}) {
      if (pid == 0) continue;
      ::kill(pid, SIGKILL);
      (void)wait_end(pid);
    }
    for (const pid_t pid : w_.helpers) {
      ::kill(pid, SIGKILL);
      (void)wait_end(pid);
    }
  }

 private:
  static void pin() {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(std::max(0, ::sched_getcpu())), &one);
    ::sched_setaffinity(0, sizeof one, &one);  // a stop is cheaper on one processor
  }

  void report(const std::string& what) {
    ++figures_.failures;
    failed_ = true;
    std::fprintf(stderr, "%s: %s (errno %s)\n", scenario_.name.c_str(), what.c_str(),
                 std::strerror(errno));
  }

  pid_t fork_role(const Role& role, int wait_fd = -1) {
    std::fflush(nullptr);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      char go = 0;
      if (wait_fd >= 0) (void)!::read(wait_fd, &go, 1);
      role.prepare(w_);
      if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(98);
      ::raise(SIGSTOP);
      role.act(w_);
      w_.op(kDone);
      for (;;) ::pause();
    }
    if (wait_fd < 0 && !wait_stopped(pid)) report("a process did not start (is ptrace allowed?)");
    return pid;
  }

  bool wait_stopped(pid_t pid) {
    int status = 0;
    while (::waitpid(pid, &status, __WALL) < 0)
      if (errno != EINTR) return false;
    if (!WIFSTOPPED(status)) {
      std::fprintf(stderr, "line %d, status %#x\n", w_.page->line.load(),
                   static_cast<unsigned>(status));
      return false;
    }
    ::ptrace(PTRACE_SETOPTIONS, pid, nullptr,
             PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEVFORK);
    return true;
  }
  static int wait_end(pid_t pid) {
    int status = 0;
    do {
      if (::waitpid(pid, &status, __WALL) < 0 && errno != EINTR) return -1;
    } while (!WIFEXITED(status) && !WIFSIGNALED(status));
    return status;
  }

  /// Steps until the role is done or `on_change` says no. True if stopped by `on_change`.
  template <class OnChange>
  bool step(pid_t pid, OnChange&& on_change) {
    image_.take(*w_.s);
    int seen_op = w_.page->op.load();
    long signal = 0;
    for (;;) {
      int status = 0;
      if (::ptrace(PTRACE_SINGLESTEP, pid, nullptr, signal) != 0 ||
          ::waitpid(pid, &status, __WALL) != pid) {
        report("cannot step");
        return false;
      }
      if (!WIFSTOPPED(status)) {
        char text[80];
        std::snprintf(text, sizeof text, "the stepped process ended: status %#x, line %d",
                      static_cast<unsigned>(status), w_.page->line.load());
        report(text);
        return false;
      }
      signal = 0;
      const int event = status >> 16;
      if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_CLONE) {
        unsigned long child = 0;
        ::ptrace(PTRACE_GETEVENTMSG, pid, nullptr, &child);
        grandchild_ = static_cast<pid_t>(child);
        (void)wait_stopped(grandchild_);
      } else if (WSTOPSIG(status) != SIGTRAP) {
        signal = WSTOPSIG(status);
      }
      ++instruction_;
      const int op = w_.page->op.load(std::memory_order_relaxed);
      const bool changed = image_.is_changed();
      if (changed) image_.take(*w_.s);
      if ((changed || op != seen_op) && !on_change()) return true;
      seen_op = op;
      if (op == kDone) return false;
    }
  }

  // ---- the checks ----

  void judge(pid_t pid) {
    pid_ = pid;
    instruction_ = 0;
    image_.take(*w_.s);
    (void)visit();
    (void)step(pid, [&] {
      ++figures_.changes;
      return visit();
    });
    figures_.boundaries += instruction_;
    // Every state must be what was there before or after the step it lies in.
    for (const Pending& p : pending_) {
      const auto before =
          std::find_if(keys_.begin(), keys_.end(), [&](const auto& k) { return k.first == p.op; });
      if (before == keys_.end()) continue;
      const auto after = before + 1 == keys_.end() ? before : before + 1;
      if (scenario_.leaves_nothing) {
        if (p.key == keys_.front().second) continue;
      } else if (p.key == before->second || p.key == after->second ||
                 (scenario_.in_between && p.key.is_between(before->second, after->second))) {
        continue;
      }
      bad("left " + p.key.text() + "; before the step " + before->second.text() + "; after it " +
              after->second.text(),
          p.instruction, p.rip);
      if (figures_.failures > 5) break;
    }
  }

  bool visit() {
    const int op = w_.page->op.load();
    const bool boundary = keys_.empty() || keys_.back().first != op;
    if (!seen_.insert(image_.hash()).second && !boundary) return true;
    ++figures_.states;
    user_regs_struct regs{};
    ::ptrace(PTRACE_GETREGS, pid_, nullptr, &regs);
    Key key{};
    const std::uint64_t bad_before = figures_.failures;
    check(key, regs.rip);
    if (figures_.failures != bad_before) return figures_.failures < 5;
    if (boundary) keys_.emplace_back(op, key);
    pending_.push_back({op, key, instruction_, regs.rip});
    return figures_.failures < 5;
  }

  void bad(const std::string& what, std::uint64_t instruction, std::uint64_t rip) {
    ++figures_.failures;
    const std::uint64_t at = rip - reinterpret_cast<std::uint64_t>(&__executable_start);
    std::fprintf(stderr, "BAD %s: behind instruction %lu, step %d, at %s:\n    %s\n",
                 scenario_.name.c_str(), instruction, w_.page->op.load(), symbol(at).c_str(),
                 what.c_str());
  }
  static std::string symbol(std::uint64_t at) {
    char command[96];
    std::snprintf(command, sizeof command, "addr2line -Cfpie /proc/%d/exe %#lx 2>/dev/null",
                  static_cast<int>(::getpid()), at);
    std::string out;
    if (FILE* p = ::popen(command, "r")) {
      char line[512];
      while (std::fgets(line, sizeof line, p) != nullptr) out += line;
      ::pclose(p);
    }
    while (!out.empty() && out.back() == '\n') out.pop_back();
    if (out.empty() || out[0] == '?')
      std::snprintf(command, sizeof command, "%#lx", at), out = command;
    return out;
  }

  void make_copy() {
    if (copy_base_ != nullptr) return;
    copy_fd_ = platform::create_memfd();
    const auto window = static_cast<off_t>(w_.s->constants().window);
    if (copy_fd_ < 0 || ::ftruncate(copy_fd_, window) != 0) std::abort();
    int error = 0;
    copy_base_ = static_cast<std::byte*>(platform::map(copy_fd_, w_.s->constants().window, error));
    if (copy_base_ == nullptr) std::abort();
  }

  void fill_copy() {
    Segment& s = *w_.s;
    const Constants& c = s.constants();
    const auto* base = reinterpret_cast<const std::byte*>(&s.header());
    const auto copy = [&](std::uint64_t from, std::uint64_t length) {
      std::memcpy(copy_base_ + from, base + from, length);
    };
    Header& h = s.header();
    copy(0, 4096);
    copy(c.slots, (h.slots_high.load() + 16) * sizeof(SlotRow));
    copy(c.channels, (h.channels_high.load() + 2) * sizeof(ChannelRow));
    copy(c.entries, (h.entries_high.load() + 16) * sizeof(SharedEntry));
    copy(c.runs, c.payload - kGuardGap - c.runs);
    const std::uint32_t end = s.committed_pages();
    for (std::uint32_t p = 0; p < end;) {
      const Run run = Run::unpack(s.run(p).load());
      if (run.length == 0 || run.length > end - p) break;
      if (run.state == RunState::kReserved || run.state == RunState::kSlab)
        copy(s.page_offset(p), std::uint64_t{run.length} << kPageShift);
      p += run.length;
    }
  }

  /// One kill: recover the copy, and look.
  void check(Key& key, std::uint64_t rip) {
    const auto fail = [&](const std::string& what) { bad(what, instruction_, rip); };
    fill_copy();
    Failure why;
    const std::shared_ptr<Segment> copy = Segment::attach(copy_fd_, why);
    if (!copy) return fail("attach refused with status " + std::to_string(int(why.status)));
    Segment& c = *copy;
    const Token me = c.token();
    std::vector<Token> dead;
    for (std::uint32_t i = 0; i < c.header().slots_high.load(); ++i) {
      const std::uint32_t word = c.slot(i).state.load();
      const Token token = slot_token(i, word);
      if (slot_state(word) == SlotState::kFree || token == me || token == token_) continue;
      dead.push_back(token);
      c.assume_dead(token);
    }
    const auto bury = [&] {
      for (const Token token : dead) reap(c, token);
      (void)reap_all(c);
    };
    bury();
    const Census census = take_census(c, true);
    for (const std::string& problem : census.problems) fail("first recovery: " + problem);
    if (!census.problems.empty()) return;
    if (census.processes != 2) return fail("the dead have a seat");
    if (census.reserved_runs != 0) return fail("a run is reserved");
    if (!claims_are_owned(c)) return fail("a claimed entry belongs to nobody");
    if (!holds_are_owned(c)) return fail("a hold belongs to nobody");
    key = {
        census.process_blocks, census.flight_blocks,
        census.ring_blocks,    census.shared_blocks,
        census.channels,       census.messages,
        census.entries,        census.committed_bytes - census.free_bytes - census.returned_bytes};

    Image first;
    first.take(c);
    first.blank_statistics(c);
    bury();
    Image second;
    second.take(c);
    second.blank_statistics(c);
    if (const std::string where = first.difference(second, c); !where.empty())
      return fail("a second recovery changes " + where);

    for (std::size_t i = 0; i < w_.channels.size(); ++i)
      if (const std::string what = drain(c, i); !what.empty()) return fail(what);
    for (const std::uint64_t length : {std::uint64_t{100}, std::uint64_t{40000}}) {
      std::uint64_t at = 0;
      if (ThreadHeap::of(c).allocate(length, at, why) != Status::kOk ||
          free_block(c, at) != Status::kOk)
        return fail("no allocation after the recovery");
    }
    ThreadHeap::of(c).trim();
    const Census last = take_census(c, true);
    for (const std::string& problem : last.problems) fail("after use: " + problem);
  }

  /// Every entry that is being built is chained, or its builder lives.
  bool claims_are_owned(Segment& c) {
    std::vector<std::uint64_t> chained((c.constants().max_entries + 63) / 64);
    for (std::uint32_t i = 0; i < c.header().channels_high.load(); ++i) {
      if (ChannelWord::unpack(c.channel(i).state.load()).state == ChannelState::kFree) continue;
      mark_chain(c, c.channel(i).sender_holds, chained.data());
      mark_chain(c, c.channel(i).receiver_holds, chained.data());
    }
    const std::uint32_t high = c.header().entries_high.load();
    for (std::uint32_t i = 0; i < high; ++i)
      if (EntryWord::unpack(c.entry(i).state.load()).state == EntryState::kActive)
        mark_chain(c, c.entry(i).holds, chained.data());
    for (std::uint32_t i = 0; i < high; ++i) {
      const EntryWord word = EntryWord::unpack(c.entry(i).state.load());
      if (word.state == EntryState::kClaimed && (chained[i / 64] >> (i % 64) & 1) == 0 &&
          word.value != token_)
        return false;
    }
    return true;
  }

  /// No count of the dead keeps anything open.
  bool holds_are_owned(Segment& c) {
    bool owned = true;
    const auto look = [&](HoldList& first) {
      HoldList* list = &first;
      for (int parts = 0; parts < 1000; ++parts) {
        for (const auto& cell : list->cells) {
          const Hold hold = Hold::unpack(cell.load());
          // What a ticket's cell keeps is its block's, and the census has looked at those.
          if (hold.count != 0 && hold.id != token_ && hold.kind != HoldKind::kTicket) owned = false;
        }
        if (list->next.load() == 0) return;
        list = &c.entry(static_cast<std::uint32_t>(list->next.load() - 1)).holds;
      }
    };
    for (std::uint32_t i = 0; i < c.header().channels_high.load(); ++i) {
      if (ChannelWord::unpack(c.channel(i).state.load()).state == ChannelState::kFree) continue;
      look(c.channel(i).sender_holds);
      look(c.channel(i).receiver_holds);
    }
    for (std::uint32_t i = 0; i < c.header().entries_high.load(); ++i)
      if (EntryWord::unpack(c.entry(i).state.load()).state == EntryState::kActive)
        look(c.entry(i).holds);
    return owned;
  }

  /// Takes all messages of a channel; empty if they are the right ones.
  std::string drain(Segment& c, std::size_t channel) {
    const std::uint32_t id = w_.channels[channel];
    ChannelRow& row = c.channel(index_of(id));
    const std::uint64_t sent = w_.page->sent[channel].load();
    const std::uint64_t received = w_.page->received[channel].load();
    // An end that somebody claimed for good cannot be looked through.
    if ((row.flags & kSharedEnds) == 0 && row.receiver.owner.load() != 0) return {};
    const Status opened = open_channel(c, id, End::kReceiver, 0);
    if (opened == Status::kNotFound && scenario_.vanishing) return {};
    if (opened != Status::kOk) return "a channel is gone that a living process holds";
    ReceiverEnd rx(c, id);
    const std::uint32_t pending = rx.pending();
    static Incoming m;
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::uint64_t count = 0;
    std::string wrong;
    for (Status status; wrong.empty();) {
      status = rx.try_receive(m, platform::kForever);
      if (status == Status::kEmpty) break;
      if (status != Status::kOk) return "receive answers " + std::to_string(int(status));
      const std::uint64_t number = number_of(c, m);
      if (number == 0) wrong = "a message is torn";
      if (first == 0) first = number;
      if (count != 0 && number != last + 1) wrong = "a message is out of order";
      last = number;
      ++count;
      if (m.lease != 0) end_lease(c, m.blocks[0].offset);
      for (std::uint32_t b = 0; b < m.block_count; ++b)
        if (free_block(c, m.blocks[b].offset) != Status::kOk)
          wrong = "a message's block is not ours";
    }
    if (!wrong.empty()) return wrong;
    // Of leased messages it may be wrong after a kill, until somebody has looked (E4).
    if (rx.is_leased() ? rx.pending() != 0 : count != pending)
      return "pending() was " + std::to_string(pending) + ", messages " + std::to_string(count);
    rx.close();
    const auto near = [](std::uint64_t n, std::uint64_t at) { return n == at || n == at + 1; };
    bool right = false;
    if (count != 0) {
      right = near(first - 1, received) && near(last, sent);
    } else {
      for (const std::uint64_t n : {sent, sent + 1}) right = right || near(n, received);
    }
    if (right) return {};
    return "messages " + std::to_string(first) + " to " + std::to_string(last) +
           " are there; sent " + std::to_string(sent) + ", received " + std::to_string(received);
  }

  struct Pending {
    int op;
    Key key;
    std::uint64_t instruction;
    std::uint64_t rip;
  };

  const Scenario& scenario_;
  Figures& figures_;
  World w_;
  Token token_ = 0;
  bool failed_ = false;
  pid_t pid_ = 0;
  pid_t grandchild_ = 0;
  Image image_;
  std::uint64_t instruction_ = 0;
  std::unordered_set<std::uint64_t> seen_;
  std::vector<std::pair<int, Key>> keys_;
  std::vector<Pending> pending_;
  int copy_fd_ = -1;
  std::byte* copy_base_ = nullptr;
};

}  // namespace stepper
