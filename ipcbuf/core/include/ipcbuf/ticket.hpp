// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ticket.hpp - a small block that keeps a shared block alive, wherever it travels.
//
// Overview
//   A block that is moved or shared without a copy belongs to a shared entry, and whoever uses
//   it holds a count there. A message on its way is nobody's, so it cannot hold one: it carries
//   a ticket instead, a block like any other, with a cell of its own in the entry's list. Who
//   receives the message holds the ticket, and reads the shared block through it; whoever frees
//   the ticket (its holder, the end of the channel, the reaper) gives the cell up first.
//
//   A ticket that leaves as bytes, in a pickle that is no message of ours, stays its maker's
//   until it is opened, once; if it never is, until the maker ends.
//
// Invariants
//   T1  A cell {kTicket, offset / 64} is in a list exactly from `make_ticket`'s add_hold to
//       `free_block`'s drop, and all that time the ticket is a block that somebody holds. So
//       no two tickets have one cell, and what frees a dead process's blocks frees its cells.
//   T2  A ticket is freed by its holder only: who finds it behind a dead process becomes its
//       holder by compare-and-swap, then drops the cell, then frees the block. A kill in
//       between leaves a ticket whose cell is gone; dropping it again finds nothing.
//   T3  A ticket's entry has a block that is no ticket.
//
// Pairs
//   T4  BlockHeader::state  offer_ticket -> adopt_ticket   carries "its maker lets go of it"
#pragma once

#include <cstdint>

#include "ipcbuf/block.hpp"

namespace ipcbuf {

/// What is in a ticket, and stands for it in a pickle.
struct TicketText {
  std::uint64_t offset;  // of the ticket
  std::uint64_t number;  // of all tickets that the maker ever made; tells reuse of a block
  Token maker;
  std::uint32_t entry;  // id
};
static_assert(sizeof(TicketText) == 24);

/// A ticket, ours, for the block that one of our views holds through `held`: the block itself,
/// which becomes shared, or another ticket for it.
[[nodiscard]] Status make_ticket(Segment& segment, std::uint64_t held, std::uint64_t& ticket,
                                 Failure& why);
[[nodiscard]] inline bool is_ticket(Segment& segment, std::uint64_t block) noexcept {
  // relaxed: written before the block was handed over, and whoever asks holds it
  return Atomics::load_relaxed(segment.block(block).ticket) != 0;
}
/// The shared block behind a ticket that we hold, and its length; kCorrupted if there is none.
[[nodiscard]] Status read_ticket(Segment& segment, std::uint64_t ticket, std::uint64_t& block,
                                 std::uint64_t& length) noexcept;
/// Lets whoever has the ticket's text take it.
void offer_ticket(Segment& segment, std::uint64_t ticket) noexcept;
/// Takes a ticket that was offered. kNotFound: somebody did already, or its maker has ended.
[[nodiscard]] Status adopt_ticket(Segment& segment, const TicketText& text) noexcept;
/// Gives up the ticket's cell, and finishes the entry if it was the last. For `free_block`.
void drop_ticket(Segment& segment, std::uint64_t ticket) noexcept;

}  // namespace ipcbuf
