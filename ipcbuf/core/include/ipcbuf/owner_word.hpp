// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// owner_word.hpp - a lock that is one 32-bit word and survives the death of its owner.
//
// Overview
//   The word holds the token of the owning process and a flag "somebody sleeps". Owner and
//   lock are the same word, so there is no instant in which the lock is taken by nobody
//   known. A waiter that has slept a slice asks whether the owner is dead (by proof, never
//   by time) and then takes the lock over with one compare-and-swap and recovers what it
//   guards. A taker that dies while recovering is taken over in turn.
//
// Invariants
//   O1  word & ~kWaiters is 0 or the token of the only process inside.
//   O2  Nobody takes the lock from a living owner.
//   O3  Whoever took over has run `recover` before `acquire` returns.
//
// Pairs (release -> acquire)
//   W1  word  release -> try_acquire, acquire   carries everything the lock guards
//
// What a kill leaves: between exchange and wake in `release`, a sleeper that waits out its
// slice; anywhere inside, a word with a dead token.
//
// Why not a robust pthread mutex: its list of held locks links process-local pointers
// through the shared memory, and the kernel may write into memory that was reused.
#pragma once

#include <cstdint>

#include "ipcbuf/atomics.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf {

template <class A = Atomics>
class OwnerWord {
 public:
  static constexpr std::uint32_t kWaiters = 1U << 31;

  [[nodiscard]] bool try_acquire(std::uint32_t me) noexcept {
    std::uint32_t expected = 0;
    // relaxed look first: a failing compare-and-swap would take the line from the owner.
    if (A::load_relaxed(word_) != 0) return false;
    return A::compare_exchange(word_, expected, me);  // W1 acquire, from release
  }

  /// Waits until the lock is ours or `deadline_ns` (monotonic) has passed.
  /// `is_dead(token)` is asked only after a slice; `recover()` runs after a take-over (O3).
  template <class IsDead, class Recover>
  [[nodiscard]] bool acquire(std::uint32_t me, std::int64_t deadline_ns, IsDead&& is_dead,
                             Recover&& recover) noexcept {
    for (int i = 0; i < kSpins; ++i) {
      if (try_acquire(me)) return true;
      platform::cpu_pause();
    }
    std::int64_t slice = kFirstSliceNs;
    std::uint32_t mine = me;
    for (;;) {
      std::uint32_t seen = A::load_acquire(word_);
      if (seen == 0) {
        if (A::compare_exchange(word_, seen, mine)) return true;  // W1 acquire
        continue;
      }
      if (mine != me && is_dead(seen & ~kWaiters)) {
        if (!A::compare_exchange(word_, seen, me | kWaiters)) continue;
        recover();
        return true;
      }
      const std::int64_t now = platform::monotonic_ns();
      if (now >= deadline_ns) {
        // However slow we are: who was to wait at all asks once whether the owner lives.
        if (deadline_ns == 0 || mine != me) return false;
        mine = me | kWaiters;
        continue;
      }
      if ((seen & kWaiters) == 0 && !A::compare_exchange(word_, seen, seen | kWaiters)) continue;
      const std::int64_t until = deadline_ns - now < slice ? deadline_ns : now + slice;
      platform::futex_wait(&word_, seen | kWaiters, until);
      mine = me | kWaiters;  // others may sleep too: keep the flag for them
      slice = kNextSliceNs;
    }
  }

  void release() noexcept {
    // W1 release, to acquire
    if (A::exchange(word_, 0) & kWaiters) platform::futex_wake(&word_, 1);
  }

  [[nodiscard]] std::uint32_t owner() const noexcept { return A::load_acquire(word_) & ~kWaiters; }

  /// Only for a word nobody else can see yet.
  void reset() noexcept { A::store_relaxed(word_, 0); }

 private:
  static constexpr int kSpins = 200;
  static constexpr std::int64_t kFirstSliceNs = 1'000'000;
  static constexpr std::int64_t kNextSliceNs = 5'000'000;

  typename A::template Cell<std::uint32_t> word_;
};

}  // namespace ipcbuf
