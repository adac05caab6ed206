// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/slots.hpp"

#include <cerrno>

#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

bool try_claim(Segment& s, std::uint32_t i, int fd, bool life_bytes, Token& out) {
  SlotRow& row = s.slot(i);
  std::uint32_t word = A::load_acquire(row.state);
  if (slot_state(word) != SlotState::kFree) return false;
  if (life_bytes && platform::lock_life_byte(fd, i) != 0) return false;
  std::uint32_t generation = word >> kSlotBits & kGenerationMask;
  if (generation == 0) generation = 1;  // a token is never 0
  const Token token = make_token(i, generation);
  row.has_life_byte = life_bytes ? 1 : 0;
  if (!A::compare_exchange(row.state, word, slot_word(token, SlotState::kClaiming))) {  // S1
    if (life_bytes) platform::unlock_life_byte(fd, i);
    return false;
  }
  out = token;
  std::uint32_t high = A::load_relaxed(s.header().slots_high);
  while (high <= i && !A::compare_exchange(s.header().slots_high, high, i + 1)) {
  }
  return true;
}

bool claim_any(Segment& s, int fd, bool life_bytes, Token& out) {
  const std::uint32_t n = s.constants().max_slots - kSpareSlots;
  // Lowest row first, so that scans over the rows in use stay short.
  for (std::uint32_t i = 0; i < n; ++i)
    if (try_claim(s, i, fd, life_bytes, out)) return true;
  return false;
}

enum class Life { kAlive, kEnded, kUnknown };

/// Of a process of our pid namespace. `is_another(pidfd)`: somebody else has its number by now.
template <class IsAnother>
Life life_of(std::uint32_t pid, IsAnother&& is_another) noexcept {
  const int pidfd = platform::pidfd_open(pid);
  if (pidfd < 0) return pidfd == -ESRCH ? Life::kEnded : Life::kUnknown;
  platform::FdEvents events;
  const bool ended = platform::poll_fd(pidfd, 0, events) > 0 || is_another(pidfd);
  platform::close_fd(pidfd);
  return ended ? Life::kEnded : Life::kAlive;
}

/// Whether a process began at another time; never if one of the times is not known.
bool began_otherwise(std::uint32_t pid, std::uint64_t began, std::uint64_t mask) noexcept {
  const std::uint64_t now = platform::start_time(pid);
  return now != 0 && began != 0 && (now & mask) != began;
}

}  // namespace

Status claim_slot(Segment& s, int fd, bool life_bytes, Token& out) {
  if (claim_any(s, fd, life_bytes, out)) return Status::kOk;
  if (s.token() != 0) {
    reap_all(s);
    if (claim_any(s, fd, life_bytes, out)) return Status::kOk;
  }
  for (std::uint32_t i = s.constants().max_slots - kSpareSlots; i < s.constants().max_slots; ++i)
    if (try_claim(s, i, fd, life_bytes, out)) return Status::kOk;
  return Status::kTooMany;
}

bool is_proven_dead(const SlotIdentity& row, std::uint32_t index, const Vantage& from) noexcept {
  if (row.state == SlotState::kFree) return true;
  // A life byte held by another description proves life in every namespace. Our own description
  // may hold bytes too (a child's, between fork handlers): those slots are alive anyway.
  const int byte = platform::test_life_byte(from.fd, index);
  const bool byte_says_dead = row.has_life_byte != 0 && byte == 0;
  if (row.state != SlotState::kAlive) return byte_says_dead;
  if (row.pid_namespace == 0 || row.pid_namespace != from.pid_namespace) return byte_says_dead;

  if (row.ward_pid != 0)  // parcels live as long as their ward; without pidfd for ever
    return life_of(row.ward_pid, [&row](int) {
             return began_otherwise(row.ward_pid, row.ward_started, Ward::kMask);
           }) == Life::kEnded;
  const Life life = life_of(row.pid, [&row](int pidfd) {
    const std::uint64_t inode = platform::pidfs_inode(pidfd);
    if (inode != 0 && row.pidfs_inode != 0) return inode != row.pidfs_inode;
    return began_otherwise(row.pid, row.start_time, UINT64_MAX);
  });
  switch (life) {
    case Life::kEnded:
      return true;
    case Life::kAlive:  // it may have let go of its byte: by execve, or its descriptor was closed
      return byte_says_dead && !platform::maps_inode(row.pid, from.inode);
    case Life::kUnknown:  // no pidfd here: start time and life byte must both say dead
      return byte_says_dead && platform::start_time(row.pid) != row.start_time;
  }
  return false;
}

void publish_seat(Segment& s, Token token, bool life_bytes) {
  SlotRow& row = s.slot(slot_of(token));
  row.pid = platform::process_id();
  row.pid_namespace = platform::pid_namespace();
  row.start_time = platform::start_time(row.pid);
  row.has_life_byte = life_bytes ? 1 : 0;
  const int pidfd = platform::pidfd_open(row.pid);
  row.pidfs_inode = pidfd < 0 ? 0 : platform::pidfs_inode(pidfd);
  platform::close_fd(pidfd);
  A::store_release(row.state, slot_word(token, SlotState::kAlive));  // L1 release, to is_dead
}

std::vector<Seat> list_seats(Segment& s) {
  std::vector<Seat> out;
  const std::uint32_t high = s.slots_high();
  const std::uint64_t here = platform::pid_namespace();
  for (std::uint32_t i = 0; i < high; ++i) {
    SlotRow& row = s.slot(i);
    const std::uint32_t word = A::load_acquire(row.state);  // L1 acquire, from publish_seat
    const SlotState state = slot_state(word);
    if (state == SlotState::kFree || ward_of(word, A::load_acquire(row.ward)).pid != 0) continue;
    const Token token = slot_token(i, word);
    const bool named = state == SlotState::kAlive;
    Seat seat{token, state, named ? row.pid : 0, named && row.pid_namespace == here,
              s.is_dead(token)};
    // Believe the identity only if the row did not change hands while it was read.
    A::load_barrier();
    if (A::load_acquire(row.state) == word) out.push_back(seat);
  }
  return out;
}

}  // namespace ipcbuf
