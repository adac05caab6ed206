// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/diagnosis.hpp"

#include <algorithm>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/slots.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

/// Of an enumeration of the layout; what lies outside reads as its first value.
template <class E>
E checked(std::uint32_t value, E last) noexcept {
  return value <= static_cast<std::uint32_t>(last) ? static_cast<E>(value) : E{};
}

/// How long ago, 0 for what claims to lie ahead.
std::int64_t age(std::uint64_t then, std::int64_t now) noexcept {
  const auto at = static_cast<std::int64_t>(then);
  return at > 0 && at < now ? now - at : 0;
}

EndDiagnosis look_at(Segment& s, EndRow& end, BellRow& bell, HoldList& holds, std::int64_t now) {
  EndDiagnosis out;
  out.state = checked(A::load_acquire(bell.end_state), EndState::kAwaited);
  out.owner_pid = pid_of(s, A::load_acquire(end.owner));
  out.lock_pid = pid_of(s, end.lock.owner());
  std::vector<Hold> cells;
  list_holds(s, holds, std::size_t{s.constants().max_slots} * 2, cells);
  for (const Hold& hold : cells) {
    const bool process = hold.kind == HoldKind::kProcess || hold.kind == HoldKind::kTransit;
    out.holders.push_back({hold.kind, process ? pid_of(s, hold.id) : 0, hold.count});
  }
  out.last_pid = A::load_relaxed(end.last_pid);  // relaxed, as all that follows: for people
  if (out.last_pid != 0) out.left_ns = age(A::load_relaxed(end.left_at), now);
  out.sleeper.pid = pid_of(s, A::load_relaxed(bell.sleeper));
  if (out.sleeper.pid != 0) out.sleeper.for_ns = age(A::load_relaxed(bell.sleeps_since), now);
  return out;
}

}  // namespace

std::uint32_t pid_of(Segment& s, Token token) noexcept {
  if (token == 0 || slot_of(token) >= s.constants().max_slots) return 0;
  SlotRow& row = s.slot(slot_of(token));
  const std::uint32_t word = A::load_acquire(row.state);  // L1 acquire, from publish_seat
  if (slot_state(word) != SlotState::kAlive || slot_token(slot_of(token), word) != token) return 0;
  return row.pid;
}

std::vector<ChannelDiagnosis> diagnose(Segment& s) {
  std::vector<ChannelDiagnosis> out;
  const std::int64_t now = platform::monotonic_ns();
  const std::uint32_t high = s.channels_high();
  for (std::uint32_t i = 0; i < high; ++i) {
    ChannelRow& row = s.channel(i);
    const std::uint64_t word = A::load_acquire(row.state);
    const ChannelWord state = ChannelWord::unpack(word);
    if (state.state != ChannelState::kActive) continue;
    ChannelDiagnosis c;
    c.id = make_id(i, state.generation);
    c.key = row.key;
    c.key.kind = checked(static_cast<std::uint32_t>(c.key.kind), KeyKind::kStr);
    c.key.length = std::min<std::uint8_t>(c.key.length, kMaxKey);
    c.type = checked(static_cast<std::uint32_t>(row.type), ChannelType::kAtomic);
    c.shared = (row.flags & kSharedEnds) != 0;
    c.bell = checked(static_cast<std::uint32_t>(row.bell_kind), BellKind::kSocket);
    c.max_items = A::load_relaxed(row.max_items);  // relaxed: given once
    c.max_bytes = A::load_relaxed(row.max_bytes);
    const auto got = static_cast<std::uint32_t>(A::load_acquire(row.receiver.items));
    const auto sent = static_cast<std::uint32_t>(A::load_acquire(row.sender.items));
    // The two were read at different moments.
    c.sent = sent;
    c.received = got;
    c.messages = static_cast<std::int32_t>(sent - got) > 0 ? sent - got : 0;
    const std::uint64_t bytes_got = A::load_acquire(row.receiver.bytes);
    const std::uint64_t bytes_sent = A::load_acquire(row.sender.bytes);
    c.bytes = c.messages != 0 && bytes_sent > bytes_got ? bytes_sent - bytes_got : 0;
    c.sender = look_at(s, row.sender, row.room, row.sender_holds, now);
    c.receiver = look_at(s, row.receiver, row.data, row.receiver_holds, now);
    if (A::load_acquire(row.state) == word) out.push_back(std::move(c));  // else: gone meanwhile
  }
  return out;
}

}  // namespace ipcbuf
