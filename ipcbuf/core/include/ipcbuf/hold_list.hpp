// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// hold_list.hpp - who keeps a channel end or a shared block alive: one count per process.
//
// Overview
//   A list of cells, each one word {kind, id, count} changed by compare-and-swap; seven
//   inline, more in shared entries chained behind. So the share of a dead process can be
//   found and dropped, which a plain reference count cannot do.
//
// Invariants
//   H1  Only who holds a count may add one (for itself, or for a child or receiver to come),
//       so an empty list stays empty. A joiner or opener of a channel, who holds none, adds it
//       under Header::directory_lock to a channel that it finds active there (J1 of
//       directory.hpp); a channel ceases to be active under that lock only.
//   H2  A chained entry is reached from its list before it gets a count, and stays chained
//       until the list's owner (entry or channel) is freed.
//
// Pairs
//   H1..  cells and next are changed by read-modify-write only: each carries itself.
#pragma once

#include <cstddef>
#include <vector>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

[[nodiscard]] HoldList& hold_list(Segment& segment, std::uint32_t channel_id, End end) noexcept;

/// Adds `hold.count` to the cell of {kind, id}; makes the cell, and a further entry, if needed.
[[nodiscard]] Status add_hold(Segment& segment, HoldList& list, Hold hold) noexcept;

/// An entry that a list may be made longer by: claimed before the lock is taken, because that
/// reserves memory. Given back if it was not needed.
class SpareEntry {
 public:
  explicit SpareEntry(Segment& segment) noexcept : s_(segment) {}
  SpareEntry(const SpareEntry&) = delete;
  SpareEntry& operator=(const SpareEntry&) = delete;
  ~SpareEntry();
  /// Makes room for one more holder: buries the dead ones, else (the second time) claims an entry.
  [[nodiscard]] Status make_room(HoldList& list) noexcept;

 private:
  friend Status try_add_hold(Segment&, HoldList&, Hold, SpareEntry&) noexcept;
  Segment& s_;
  bool reaped_ = false;
  std::uint64_t next_ = 0;  // index + 1
};
/// As `add_hold`, under a lock: no system call, nobody buried. kFull: `make_room` outside it.
[[nodiscard]] Status try_add_hold(Segment& segment, HoldList& list, Hold hold,
                                  SpareEntry& spare) noexcept;
/// Takes one count (or all) of {kind, id} away. True if the list is empty afterwards.
bool drop_hold(Segment& segment, HoldList& list, HoldKind kind, std::uint32_t id,
               bool all) noexcept;
[[nodiscard]] bool has_hold(Segment& segment, HoldList& list, HoldKind kind,
                            std::uint32_t id) noexcept;
[[nodiscard]] bool is_unheld(Segment& segment, HoldList& list) noexcept;
/// Appends the cells in use, at most `limit`, as they are while others change them.
void list_holds(Segment& segment, HoldList& list, std::size_t limit, std::vector<Hold>& out);
/// True if one of the processes in the list is dead and was reaped.
bool reap_dead_holders(Segment& segment, HoldList& list) noexcept;
/// True if one of the processes in the list lives; stops at the first. Asks the kernel.
[[nodiscard]] bool has_living_holder(Segment& segment, HoldList& list) noexcept;
/// Counts of all processes together, handles on their way included.
[[nodiscard]] std::uint64_t count_holds(Segment& segment, HoldList& list) noexcept;
/// One of the holders, 0 if there is none.
[[nodiscard]] Token any_holder(Segment& segment, HoldList& list) noexcept;
/// Makes us answer for the chained entries, before `list` becomes unreachable.
void adopt_chain(Segment& segment, HoldList& list) noexcept;
/// Gives adopted entries back. Their list is not reachable any more.
void release_chain(Segment& segment, std::uint64_t next) noexcept;
/// Marks the entries reachable from `list` in a bitmap with one bit per entry.
void mark_chain(Segment& segment, HoldList& list, std::uint64_t* bitmap) noexcept;

/// A free entry in state kClaimed, ours; kTooMany if there is none, kExhausted if the
/// table could not grow.
[[nodiscard]] Status claim_entry(Segment& segment, std::uint32_t& index) noexcept;

}  // namespace ipcbuf
