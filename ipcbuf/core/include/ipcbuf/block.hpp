// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// block.hpp - a block and who holds it.
//
// Overview
//   Each block starts with one word: holder (free, a process, a channel, a shared entry) and
//   a check value keyed by offset, size and slab. That word alone says whose the block is.
//
// Invariants
//   B1  A holder word changes only in a slab whose slot set has the bit of whoever may find
//       himself written there, or dies in the middle of writing it.
//   B2  A free block's word is taken by compare-and-swap only: its slab's thread allocates
//       from it, and under pressure others take whole empty slabs.
//   B3  Whoever takes a whole slab claims all its blocks with the salt that the slab had when it
//       was seen to be one. The headers of the next slab in these pages are there before it is
//       one; claims with its salt would free the pages under their new owner.
//
// Pairs
//   K1  holder  free_block -> ThreadHeap::allocate, retire_slab   carries "I read no more"
//   K2  holder  change_holder -> reaper                           carries the header's fields
//   K3  salt    new_slab -> retire_slab                           carries the run's reservation
#pragma once

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

constexpr std::uint64_t holder_word(const BlockPlace& p, Holder h) noexcept {
  return p.check | static_cast<std::uint64_t>(h.kind) << 32 | h.id;
}
constexpr Holder by_process(Token t) noexcept { return {HolderKind::kProcess, t}; }
constexpr Holder by_channel(std::uint32_t id) noexcept { return {HolderKind::kChannel, id}; }
constexpr Holder by_entry(std::uint32_t id) noexcept { return {HolderKind::kEntry, id}; }
inline constexpr Holder kNobody{HolderKind::kFree, 0};

/// The holder of a block; false: the check value is wrong, somebody wrote over it.
[[nodiscard]] bool read_holder(Segment& segment, const BlockPlace& place, Holder& out) noexcept;
/// Writes our bit into the slab's slot set (B1). Before any store of our token below it.
void note_slot(Segment& segment, const BlockPlace& place) noexcept;
/// Plain store, for who holds the block already or takes it from a ring (D5).
void store_holder(Segment& segment, const BlockPlace& place, Holder to) noexcept;
/// True if the holder was `from` and is `to` now.
[[nodiscard]] bool change_holder(Segment& segment, const BlockPlace& place, Holder from,
                                 Holder to) noexcept;
/// Frees a block whose holder is `from`. kCorrupted: it is not (double or foreign free).
[[nodiscard]] Status free_block(Segment& segment, std::uint64_t offset, Holder from) noexcept;
[[nodiscard]] Status free_block(Segment& segment, std::uint64_t offset) noexcept;  // ours
/// For a reaper, which may come too late: false if `from` has it no more, or the slab is gone.
bool free_if_held(Segment& segment, std::uint64_t offset, Holder from) noexcept;

/// Takes every block of an empty slab and gives its pages back. False: it is not empty.
bool retire_slab(Segment& segment, std::uint32_t head) noexcept;
/// Makes a slab ownerless; gives it back if it is empty.
void orphan_slab(Segment& segment, std::uint32_t head) noexcept;

/// A view survives a fork: parent and child hold its block together from here on. With nobody
/// (0): the block gets a shared entry in which we hold the only count.
[[nodiscard]] Status share_block(Segment& segment, std::uint64_t offset, Token with) noexcept;
/// Gives up this process's share of a block, whoever holds it with us.
[[nodiscard]] Status drop_block(Segment& segment, std::uint64_t offset) noexcept;
/// Frees the block of an entry nobody holds any more, and the entry. Idempotent.
void finish_entry(Segment& segment, std::uint32_t index) noexcept;

}  // namespace ipcbuf
