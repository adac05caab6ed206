// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// lease.hpp - messages that are delivered again if their receiver dies before it is done.
//
// Overview
//   On a leased channel every message is one block that describes itself: what it is and where
//   it belongs stand in its header, all else in band. A receiver claims it, works, and ends the
//   lease. If it dies before, the reaper does not free the block but hands it back: from the dead
//   process to the channel. So does a receiver that gives it up. Handed-back messages are in no
//   ring; receivers find them by a walk over the slabs, which the channel's `returned` asks for.
//
// Invariants
//   E2  A message belongs to its sender until `taken`, which a receiver sets before it writes
//       itself into the holder: what a dead sender had not published is not handed back.
//   E3  A block of a dead process whose lease is taken, and that no ring reaches, goes to its
//       channel by compare-and-swap; without a lease, or without the channel, it is free.
//   E4  A handed-back block is found: `returned` is counted up behind the holder, and whoever
//       buries one that died in between sees to it that it is not 0. Its count may be wrong after
//       a kill; the next walk mends that. Receivers count it down under their end's lock only.
//   E5  A channel that ends frees what was handed back: the destroyer writes its state, takes
//       `returned`, walks; who hands back writes the holder, counts `returned`, looks at the
//       state. Both change one word in between, so one of the two sees the other.
//   D8  End: before the look at the ring (D7) nobody else has an open lease of this channel.
//
// Pairs
//   E6  holder  hand_back -> take_returned   carries the message (K2)
//
// What a kill leaves: a lease is ended by one store (0), so a message is delivered again at most
// once for each of its holders that was killed.
#pragma once

#include <cstdint>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// The block of a taken message goes from `from` to its channel; freed if the channel is gone.
/// kCorrupted: it is not held by `from`, or no block at all (a reaper may come too late).
Status hand_back(Segment& segment, std::uint64_t offset, Holder from) noexcept;
/// Of a block that a channel holds and the dead may have handed back: sees to E4, or frees it.
void remember_returned(Segment& segment, std::uint64_t offset, std::uint32_t channel) noexcept;
/// Frees what was handed back to a channel that is being destroyed (E5).
void free_returned(Segment& segment, std::uint32_t channel);
/// The lease is over, the message is done: a kill from here on frees the block. Before the block
/// is freed, always: the next who allocates it may die before it has cleaned the header.
void end_lease(Segment& segment, std::uint64_t offset) noexcept;
/// True if a process other than us has a message of this channel and is not done with it. Buries
/// it if it is dead.
[[nodiscard]] bool is_leased_elsewhere(Segment& segment, std::uint32_t channel);

struct ReturnedMessage {
  std::uint64_t offset;
  std::uint32_t order;
};
/// The oldest returned messages of a channel, sorted; all of them if there are fewer than
/// `capacity`. Returns how many there are in all. `heads` has room for every slab.
[[nodiscard]] std::uint32_t find_returned(Segment& segment, std::uint32_t channel,
                                          std::uint32_t* heads, std::uint32_t slabs,
                                          ReturnedMessage* out, std::uint32_t capacity) noexcept;

}  // namespace ipcbuf
