// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// reaper.hpp - what a survivor does with the property of a dead process.
//
// Overview
//   Done by whoever notices: a waiter at the end of its slice, a locker that finds a dead
//   owner, a process on its way in, an allocation about to fail. Every step may be repeated;
//   the slot's return to kFree is the commit. A reaper that dies is followed by another that
//   starts afresh, under the slot's own owner word.
//
// Steps, in this order
//   1 locks: take over, recover, release       4 blocks: garbage unless a ring holds them
//   2 channels: ends dead, holds dropped       5 slabs: ownerless; half-made runs: free
//   3 shared entries: holds dropped            6 the slot: next generation, free
//
// Why blocks come after channels: a channel that dies with its last holder empties its rings
// first. Why candidates are collected before the rings are walked: the dead publish nothing
// more, so what is in no ring after that will be in none.
#pragma once

#include <cstdint>
#include <unordered_set>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// Buries `token`, which is dead (or us, leaving). Returns at once if somebody has done it.
void reap(Segment& segment, Token token);
/// Looks at a few slots, another few at each call. Returns how many were buried.
int reap_some(Segment& segment, int slots);
/// Looks at every slot.
int reap_all(Segment& segment);
/// Gives our slot back; the segment goes on for others.
void leave(Segment& segment, Token token);
/// Gives empty slabs of anybody back to the central heap: the last resort of an allocation.
void steal_empty_slabs(Segment& segment);

/// What the rings of one channel reach: ring blocks and blocks in flight.
struct Reached {
  std::unordered_set<std::uint64_t> rings;
  std::unordered_set<std::uint64_t> blocks;
};
/// Walks while others go on sending and receiving; visits at least what stays in the ring.
void reach(Segment& segment, std::uint32_t channel_index, Reached& out);

}  // namespace ipcbuf
