// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// atomic_cell.hpp - 64 bits with a key, to be changed, waited for and announced.
//
// Overview
//   A channel of type kAtomic without rings: the cell is ChannelRow::value, its users hold the
//   sending end. As std::atomic<T>::wait of C++20, a wait looks at the value when it begins and
//   when it is notified; changing the value notifies nobody, `notify` does. A waiter that was
//   not notified looks again at the end of its slice.
//
// Invariants
//   N1  No notification is lost between the living: a waiter sets kBellWaiting of `data`, then
//       looks at the value, then sleeps on the word it has seen; who changes the value and then
//       notifies finds the flag or was seen (D1 of doorbell.hpp). Every notification changes
//       the word, so a waiter between its look and its sleep does not sleep.
//   N2  The flag is cleared only by who wakes all.
//
// Pairs
//   N3  value  store, add, exchange, compare_exchange -> load, wait   carries what was written
//              before (sequentially consistent)
#pragma once

#include <atomic>
#include <cstdint>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// One user's handle. Several threads may use it; `close` lets those inside finish.
class AtomicCell {
 public:
  /// The end is held for this object already.
  AtomicCell(Segment& segment, std::uint32_t id) noexcept
      : s_(segment), row_(segment.channel(index_of(id))), id_(id), token_(segment.token()) {}
  AtomicCell(const AtomicCell&) = delete;
  AtomicCell& operator=(const AtomicCell&) = delete;
  ~AtomicCell() { close(); }

  /// Keeps the cell ours for a call. False: closed here.
  class Use {
   public:
    explicit Use(AtomicCell& cell) noexcept : cell_(cell), inside_(cell.enter()) {}
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() {
      if (inside_) cell_.leave();
    }
    explicit operator bool() const noexcept { return inside_; }

   private:
    AtomicCell& cell_;
    bool inside_;
  };

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] bool is_closed() const noexcept { return (users_.load() & kClosed) != 0; }
  void close();

  // ---- inside a Use ----
  [[nodiscard]] std::uint64_t load() noexcept { return Atomics::load_seq(row_.value); }  // N3
  void store(std::uint64_t value) noexcept { Atomics::store_seq(row_.value, value); }
  [[nodiscard]] std::uint64_t add(std::uint64_t n) noexcept {
    return Atomics::fetch_add(row_.value, n);
  }
  [[nodiscard]] std::uint64_t exchange(std::uint64_t value) noexcept {
    return Atomics::exchange(row_.value, value);
  }
  [[nodiscard]] bool compare_exchange(std::uint64_t expected, std::uint64_t desired) noexcept {
    return Atomics::compare_exchange(row_.value, expected, desired);
  }
  /// Wakes up to `n` waiters, all if `n` is negative.
  void notify(int n) noexcept;
  /// Waits a slice until the value is another. kOk: it is; kEmpty: time is up; kSlice.
  [[nodiscard]] Status wait_slice(std::uint64_t old, std::int64_t until_ns, Wait& wait) noexcept;

 private:
  static constexpr std::uint32_t kClosed = 1;
  static constexpr std::uint32_t kOne = 2;

  [[nodiscard]] bool enter() noexcept;
  void leave() noexcept;
  void forget_parents_threads() noexcept;

  Segment& s_;
  ChannelRow& row_;
  const std::uint32_t id_;
  // Of this process: kClosed | threads inside * kOne. The last of them gives the end up.
  std::atomic<Token> token_;
  std::atomic<std::uint32_t> users_ = 0;
};

}  // namespace ipcbuf
