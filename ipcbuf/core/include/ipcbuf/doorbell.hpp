// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// doorbell.hpp - one side sleeps until the other moves.
//
// Overview
//   One word per side: flag kWaiting "somebody sleeps", and a sequence that grows when the
//   flag is cleared. The waker clears the flag and wakes one sleeper; a flag, never a count,
//   because a count would outlive a killed sleeper. For descriptors that are polled two more
//   flags: kArmed "the descriptor is watched" (sticky), kToken "a byte stands in it".
//
// Invariants
//   D1  No wake-up is lost between the living:
//          sleeper                         publisher
//          kWaiting := 1                   the item count := n
//          barrier on all processors       (compiler barrier)
//          item count still the old one?   kWaiting?
//          then sleep                      then clear it and wake
//       The sleeper's barrier orders the publisher's two accesses too, so the publisher
//       needs no fence; where the kernel has no such barrier the publisher uses one.
//   D2  Whoever has slept sets kWaiting again when it leaves, and if something is left wakes
//       one more: the flag it was woken by stood for all sleepers.
//   D3  kToken is changed, and the byte written or drained, under the sending end's lock only.
//   D4  Whenever that lock is free: kToken if the ring is not empty (of a socket always, because
//       a receiver cannot ring its own socket later; of an eventfd while kArmed), and while
//       kArmed not if it is empty.
//
// What a kill leaves: between publish and wake, sleepers that wait out a slice; between kToken
// and the byte, a descriptor that does not read ready, until who takes the sending end's lock
// over writes one more byte. A byte too many is taken along by the next drain.
#pragma once

#include <cstdint>

#include "ipcbuf/layout.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf {

inline constexpr std::uint32_t kBellWaiting = 1;
inline constexpr std::uint32_t kBellArmed = 2;
inline constexpr std::uint32_t kBellToken = 4;
inline constexpr std::uint32_t kBellStep = 8;  // the sequence lies above the flags

template <class A = Atomics>
class Doorbell {
 public:
  explicit Doorbell(BellRow& row, bool asymmetric) noexcept : row_(row), asymmetric_(asymmetric) {}

  /// Sleeper, first step of D1. Returns the word to sleep on.
  [[nodiscard]] std::uint32_t announce() noexcept {
    const std::uint32_t word = mark();
    if (asymmetric_) platform::barrier_all();
    return word;
  }
  /// Only the store of D1: who marks many bells runs one barrier for all of them.
  [[nodiscard]] std::uint32_t mark() noexcept {
    return A::fetch_or(row_.word, kBellWaiting) | kBellWaiting;
  }
  void sleep(std::uint32_t word, std::int64_t until_ns) noexcept {
    platform::futex_wait(&row_.word, word, until_ns);
  }
  /// D2, first half.
  void leave() noexcept { A::fetch_or(row_.word, kBellWaiting); }

  /// Publisher, second step of D1: the word, read behind the publish.
  [[nodiscard]] std::uint32_t look() noexcept {
    if (asymmetric_) {
      A::compiler_barrier();
      return A::load_relaxed(row_.word);  // relaxed: ordered by the sleeper's barrier (D1)
    }
    return A::fetch_or(row_.word, 0);  // a full barrier
  }
  /// Clears the flag and wakes one sleeper.
  void wake() noexcept {
    std::uint32_t word = A::load_relaxed(row_.word);
    while ((word & kBellWaiting) != 0) {
      if (A::compare_exchange(row_.word, word, (word + kBellStep) & ~kBellWaiting)) {
        platform::futex_wake(&row_.word, 1);
        return;
      }
    }
  }
  void wake_all() noexcept {
    A::fetch_add(row_.word, kBellStep);
    platform::futex_wake(&row_.word, INT32_MAX);
  }
  void ring_futex() noexcept {
    if ((look() & kBellWaiting) != 0) [[unlikely]]
      wake();
  }

  /// Under the sending end's lock (D3).
  void set_token() noexcept {
    std::uint32_t word = A::load_relaxed(row_.word);
    while (
        !A::compare_exchange(row_.word, word, ((word + kBellStep) & ~kBellWaiting) | kBellToken)) {
    }
  }
  void clear_token() noexcept { A::fetch_and(row_.word, ~kBellToken); }
  void arm() noexcept { A::fetch_or(row_.word, kBellArmed); }

 private:
  BellRow& row_;
  bool asymmetric_;
};

}  // namespace ipcbuf
