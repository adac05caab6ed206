// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// journal.hpp - what each process of a stress run says that it did, and the audit of it.
//
// Overview
//   A book per actor (a process, or a thread of one), in a plain mapping that all share and that
//   is no part of the segment under test: a kill leaves in it exactly what was written. An actor
//   writes down what it is about to send and what it has sent, what it is about to take and what
//   it has taken. The audit of an epoch, when all have ended, compares:
//     lost       sent and taken by nobody, more than consumers were killed while they took
//     doubled    taken twice, or never begun to be sent
//     reordered  taken by one actor, of one sender, behind a later number
//     torn       other bytes than were sent
//   A private channel (one sender, one receiver, made and ended by the workers) has stricter
//   rules: who saw its end has seen all that was sent, without a gap.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <new>
#include <vector>

namespace stress {

inline constexpr std::uint32_t kMaxChannels = 8;
inline constexpr std::uint32_t kMaxActors = 8192;
inline constexpr std::uint32_t kLogEntries = 8192;

/// What an actor is doing; a kill is counted under it.
enum class Doing : std::uint32_t {
  kStarting,
  kBetween,
  kSending,
  kReceiving,
  kAllocating,
  kDropping,
  kForking,
  kWaitingForChild,
  kMakingChannel,
  kPrivateSending,
  kPrivateReceiving,
  kPolling,
  kReaping,
  kAttaching,
  kLeaving,
  kCount
};
inline constexpr const char* kDoingNames[] = {"starting",
                                              "between",
                                              "sending",
                                              "receiving",
                                              "alloc",
                                              "drop",
                                              "fork",
                                              "waiting_for_child",
                                              "make",
                                              "private_sending",
                                              "private_receiving",
                                              "poll",
                                              "reap",
                                              "attach",
                                              "leave"};
static_assert(sizeof kDoingNames / sizeof *kDoingNames == static_cast<std::size_t>(Doing::kCount));

enum class EntryKind : std::uint64_t {
  kTaken = 1,        // actor, channel, number: a message of a common channel
  kPrivateSent = 2,  // maker, channel of that maker, count: the sender ended it
  kPrivateEnd = 3,   // maker, channel of that maker, count: the receiver saw the end
};

/// One word: kind : 2, torn : 1, actor : 13, channel : 16, number : 32.
struct Entry {
  EntryKind kind;
  bool torn;
  std::uint32_t actor;
  std::uint32_t channel;
  std::uint32_t number;

  [[nodiscard]] std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(kind) << 62 | std::uint64_t{torn} << 61 |
           std::uint64_t{actor} << 48 | std::uint64_t{channel} << 32 | number;
  }
  static Entry unpack(std::uint64_t w) noexcept {
    return {static_cast<EntryKind>(w >> 62), (w >> 61 & 1) != 0,
            static_cast<std::uint32_t>(w >> 48 & 0x1FFF),
            static_cast<std::uint32_t>(w >> 32 & 0xFFFF), static_cast<std::uint32_t>(w)};
  }
};
static_assert(kMaxActors <= 0x2000);

struct Book {
  template <class T>
  using Word = std::atomic<T>;

  Word<std::uint32_t> pid;
  Word<std::uint32_t> doing;
  Word<std::uint32_t> where;      // channel of what it is doing
  Word<std::uint32_t> receiving;  // common channel + 1, from before the take until it is written
  Word<std::uint32_t> finished;   // it was not killed
  Word<std::uint32_t> bad;        // a line of the test: something impossible was answered
  Word<std::uint32_t> bad_status;
  Word<std::uint32_t> exhausted;  // allocations that were refused
  Word<std::uint64_t> steps;
  Word<std::uint32_t> begun[kMaxChannels];
  Word<std::uint32_t> done[kMaxChannels];
  Word<std::uint32_t> private_maker;  // actor + 1 of the private channel it sends on
  Word<std::uint32_t> private_channel;
  Word<std::uint32_t> private_begun;
  Word<std::uint32_t> private_done;
  Word<std::uint32_t> entries;
  alignas(64) Word<std::uint64_t> log[kLogEntries];

  [[nodiscard]] bool has_space() const noexcept { return entries < kLogEntries - 64; }
  void write(const Entry& entry) noexcept {
    const std::uint32_t n = entries;
    if (n >= kLogEntries) std::abort();
    log[n] = entry.pack();
    entries = n + 1;
  }
};

/// What all see beside the segment.
struct Board {
  std::atomic<std::uint32_t> stop;
  std::atomic<std::uint32_t> actors;  // books given out in this epoch
  Book books[kMaxActors];

  static Board* make() {
    void* at = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) std::abort();
    return static_cast<Board*>(at);
  }
  /// A book of one's own; nullptr if this epoch had too many actors.
  [[nodiscard]] Book* take() noexcept {
    std::uint32_t n = actors;
    do {
      if (n == kMaxActors) return nullptr;
    } while (!actors.compare_exchange_weak(n, n + 1));
    return &books[n];
  }
  [[nodiscard]] std::uint32_t number_of(const Book& book) const noexcept {
    return static_cast<std::uint32_t>(&book - books);
  }
  /// Between two epochs: all books are new, and their memory is the system's again.
  void reset() noexcept {
    if (::madvise(this, sizeof *this, MADV_REMOVE) != 0) std::abort();
  }
};

struct Findings {
  std::uint64_t messages = 0;
  std::uint64_t private_channels = 0;
  std::uint64_t taken_by_dead = 0;
  std::uint64_t lost = 0;
  std::uint64_t doubled = 0;
  std::uint64_t reordered = 0;
  std::uint64_t torn = 0;
  std::uint64_t bad = 0;
  std::uint64_t exhausted = 0;

  [[nodiscard]] std::uint64_t wrong() const noexcept {
    return lost + doubled + reordered + torn + bad;
  }
};

/// Compares the books of an epoch in which everybody has ended.
inline void audit(Board& board, Findings& out) {
  const std::uint32_t n = board.actors;
  std::vector<std::vector<std::uint8_t>> seen(std::size_t{n} * kMaxChannels);
  std::vector<std::uint64_t> last(std::size_t{n} * kMaxChannels);  // consumer << 32 | number
  std::uint64_t killed_inside[kMaxChannels] = {};
  std::uint64_t missing[kMaxChannels] = {};
  using Channel = std::pair<std::uint32_t, std::uint32_t>;
  std::map<Channel, Entry> sent;
  std::map<Channel, const Book*> cut_off;
  const auto say = [](const char* what, std::uint32_t a, std::uint32_t b, std::uint32_t c) {
    std::fprintf(stderr, "  %s: sender %u, channel %u, number %u\n", what, a, b, c);
  };

  for (std::uint32_t i = 0; i < n; ++i) {
    Book& book = board.books[i];
    out.exhausted += book.exhausted;
    if (book.bad != 0) {
      ++out.bad;
      std::fprintf(stderr, "  actor %u: line %u was answered %u\n", i, book.bad.load(),
                   book.bad_status.load());
    }
    if (book.finished == 0 && book.receiving != 0) ++killed_inside[book.receiving - 1];
    if (book.private_maker != 0) cut_off[{book.private_maker - 1, book.private_channel}] = &book;
    for (std::uint32_t k = 0; k < book.entries; ++k) {
      const Entry e = Entry::unpack(book.log[k]);
      if (e.torn) ++out.torn, say("torn", e.actor, e.channel, e.number);
      if (e.kind == EntryKind::kPrivateSent) sent[{e.actor, e.channel}] = e;
      if (e.kind != EntryKind::kTaken) continue;
      if (e.actor >= n || e.channel >= kMaxChannels ||
          e.number > board.books[e.actor].begun[e.channel] || e.number == 0) {
        ++out.doubled, say("never sent", e.actor, e.channel, e.number);
        continue;
      }
      ++out.messages;
      const std::size_t at = std::size_t{e.actor} * kMaxChannels + e.channel;
      seen[at].resize(board.books[e.actor].begun[e.channel] + 1);
      if (seen[at][e.number]++ != 0) ++out.doubled, say("twice", e.actor, e.channel, e.number);
      if (last[at] >> 32 == i + 1 && static_cast<std::uint32_t>(last[at]) >= e.number)
        ++out.reordered, say("reordered", e.actor, e.channel, e.number);
      last[at] = std::uint64_t{i + 1} << 32 | e.number;
    }
  }
  for (std::uint32_t p = 0; p < n; ++p) {
    for (std::uint32_t c = 0; c < kMaxChannels; ++c) {
      const auto& marks = seen[std::size_t{p} * kMaxChannels + c];
      for (std::uint32_t k = 1; k <= board.books[p].done[c]; ++k) {
        if (k < marks.size() && marks[k] != 0) continue;
        // A killed consumer may have taken one message and not yet written it down.
        if (++missing[c] <= killed_inside[c]) {
          ++out.taken_by_dead;
        } else {
          ++out.lost, say("lost", p, c, k);
        }
      }
    }
  }
  for (std::uint32_t i = 0; i < n; ++i) {
    for (std::uint32_t k = 0; k < board.books[i].entries; ++k) {
      const Entry e = Entry::unpack(board.books[i].log[k]);
      if (e.kind != EntryKind::kPrivateEnd) continue;
      ++out.private_channels;
      out.messages += e.number;
      std::uint32_t least = 0;
      std::uint32_t most = 0;
      if (const auto whole = sent.find({e.actor, e.channel}); whole != sent.end()) {
        least = most = whole->second.number;
      } else if (const auto cut = cut_off.find({e.actor, e.channel}); cut != cut_off.end()) {
        least = cut->second->private_done;
        most = cut->second->private_begun;
      }
      if (e.number < least)
        out.lost += least - e.number, say("lost, private", e.actor, e.channel, e.number);
      if (e.number > most) ++out.doubled, say("too many, private", e.actor, e.channel, e.number);
    }
  }
}

}  // namespace stress
