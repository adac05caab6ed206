// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// slots.hpp - seats of processes: claimed, reserved for a child, given back by the reaper.
//
// Invariants
//   S1  A row leaves kFree only by the compare-and-swap of a claimer that holds its life byte
//       (or whose system has none), and returns to kFree only under the row's reaper word.
//   S2  The generation grows with every return to kFree, so a token names one process for ever.
//
// Pairs
//   L1  state  publish_seat -> is_dead, reap   carries the identity
#pragma once

#include <cstdint>
#include <vector>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// Claims a free row through the life byte of `fd`; the row is kClaiming afterwards.
/// The last rows are for who must first have a token to bury others when all else is taken.
inline constexpr std::uint32_t kSpareSlots = 64;
[[nodiscard]] Status claim_slot(Segment& segment, int fd, bool life_bytes, Token& out);
/// Writes this process's identity into a claimed or reserved row and makes it kAlive.
void publish_seat(Segment& segment, Token token, bool life_bytes);
/// A row in use, but for those that hold parcels, as somebody who looks finds it.
struct Seat {
  Token token;
  SlotState state;
  std::uint32_t pid;  // 0 while it is claimed or reserved; a number of its own pid namespace
  bool same_namespace;
  bool dead;  // proven, and not yet buried
};
[[nodiscard]] std::vector<Seat> list_seats(Segment& segment);
/// The row's state word for a token, as it must be while that process lives.
constexpr std::uint32_t slot_word(Token token, SlotState state) noexcept {
  return static_cast<std::uint32_t>(state) | generation_of(token) << kSlotBits;
}
/// Who a row stands for, as read from the segment or from its file.
struct SlotIdentity {
  SlotState state;
  std::uint32_t pid;
  std::uint32_t has_life_byte;
  std::uint64_t pid_namespace;
  std::uint64_t start_time;
  std::uint64_t pidfs_inode;
  std::uint32_t ward_pid;  // of a seat for parcels: whose death ends it; else 0
  std::uint32_t ward_started;
};
/// Of a seat whose state word and ward these are: its ward; pid 0 if it is none for parcels.
constexpr Ward ward_of(std::uint32_t state, std::uint64_t ward) noexcept {
  const Ward w = Ward::unpack(ward);
  return w.generation == state >> kSlotBits ? w : Ward{};  // V1
}
/// Where this question is asked, and about which file.
struct Vantage {
  int fd;
  std::uint64_t pid_namespace;
  std::uint64_t inode;
};
/// Proof that the process of row `index` is dead, never a guess. Slow: system calls. The caller
/// looks again whether the row has changed hands meanwhile.
[[nodiscard]] bool is_proven_dead(const SlotIdentity& row, std::uint32_t index,
                                  const Vantage& from) noexcept;

constexpr SlotState slot_state(std::uint32_t word) noexcept {
  return static_cast<SlotState>(word & 7);
}
constexpr Token slot_token(std::uint32_t index, std::uint32_t word) noexcept {
  return make_token(index, word >> kSlotBits);
}

}  // namespace ipcbuf
