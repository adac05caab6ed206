// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/lease.hpp"

#include <algorithm>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

/// The row of a channel that is alive, else nullptr.
ChannelRow* living(Segment& s, std::uint32_t id) noexcept {
  const std::uint32_t index = index_of(id);
  if (index >= s.channels_high()) return nullptr;
  ChannelRow& row = s.channel(index);
  const ChannelWord word = ChannelWord::unpack(A::load_acquire(row.state));
  const bool alive = word.state == ChannelState::kActive && word.generation == generation_of_id(id);
  return alive ? &row : nullptr;
}

/// A message of a channel that is gone: of all who find it one becomes the holder and frees it.
void free_stray(Segment& s, const BlockPlace& p, std::uint32_t id) noexcept {
  note_slot(s, p);
  if (change_holder(s, p, by_channel(id), by_process(s.token()))) (void)free_block(s, p.offset);
}

/// Calls `visit(place, holder, lease)` for every block of the slab that has a lease; stops at true.
template <class Visit>
bool any_leased(Segment& s, std::uint32_t head, Visit&& visit) noexcept {
  BlockPlace p{};
  if (!s.place(s.page_offset(head), p)) return false;
  const std::uint32_t salt = A::load_relaxed(s.page(head).salt);
  for (std::uint32_t i = 0; i < p.count; ++i) {
    BlockPlace b = p;
    b.index = i;
    b.offset = p.offset + i * p.size();
    b.check = s.check_of(b.offset, p.units, salt);
    Holder holder{};
    if (!read_holder(s, b, holder) || holder.kind == HolderKind::kFree) continue;
    const std::uint64_t lease = A::load_acquire(s.block(b.offset).lease);
    if (lease != 0 && visit(b, holder, Lease::unpack(lease))) return true;
  }
  return false;
}

std::vector<std::uint32_t> slabs_of(Segment& s) {
  std::vector<std::uint32_t> out(s.committed_pages());
  out.resize(RunHeap(s).list(RunState::kSlab, out.data(), static_cast<std::uint32_t>(out.size())));
  return out;
}

}  // namespace

Status hand_back(Segment& s, std::uint64_t offset, Holder from) noexcept {
  BlockPlace p{};
  if (!s.place(offset, p)) return Status::kCorrupted;
  const std::uint32_t id = Lease::unpack(A::load_acquire(s.block(offset).lease)).channel;
  ChannelRow* row = living(s, id);
  if (row == nullptr) return free_if_held(s, offset, from) ? Status::kOk : Status::kCorrupted;
  if (!change_holder(s, p, from, by_channel(id))) return Status::kCorrupted;  // E3, E6 release
  A::fetch_add(row->give_backs, 1);
  A::fetch_add(row->returned, 1);  // E4, E5
  if (living(s, id) == nullptr) {
    free_stray(s, p, id);
    return Status::kOk;
  }
  Doorbell<>(row->data, s.asymmetric()).wake_all();
  return Status::kOk;
}

void remember_returned(Segment& s, std::uint64_t offset, std::uint32_t id) noexcept {
  BlockPlace p{};
  if (!s.place(offset, p)) return;
  ChannelRow* row = living(s, id);
  if (row == nullptr) {
    free_stray(s, p, id);
    return;
  }
  if (A::load_acquire(row->returned) != 0) return;
  A::fetch_add(row->give_backs, 1);
  A::fetch_add(row->returned, 1);
  if (living(s, id) == nullptr) {
    free_stray(s, p, id);
    return;
  }
  Doorbell<>(row->data, s.asymmetric()).wake_all();
}

void free_returned(Segment& s, std::uint32_t id) {
  A::exchange(s.channel(index_of(id)).returned, 0);  // E5
  for (const std::uint32_t head : slabs_of(s))
    any_leased(s, head, [&](const BlockPlace& p, Holder holder, Lease) {
      if (holder == by_channel(id)) free_stray(s, p, id);
      return false;
    });
}

void end_lease(Segment& s, std::uint64_t offset) noexcept {
  BlockPlace p{};
  if (!s.place(offset, p)) return;
  auto& word = s.block(offset).lease;
  const std::uint32_t id = Lease::unpack(A::load_relaxed(word)).channel;
  A::store_release(word, 0);
  // Who waits for the end of the channel waits for us (D8).
  ChannelRow* row = living(s, id);
  if (row != nullptr &&
      A::load_acquire(row->sender_state()) != static_cast<std::uint32_t>(EndState::kOpen))
    Doorbell<>(row->data, s.asymmetric()).wake_all();
}

bool is_leased_elsewhere(Segment& s, std::uint32_t id) {
  bool open = false;
  Token dead = 0;
  for (const std::uint32_t head : slabs_of(s)) {
    open = any_leased(s, head, [&](const BlockPlace&, Holder holder, Lease lease) {
      if (lease.channel != id || !lease.taken || holder == by_process(s.token())) return false;
      if (holder.kind == HolderKind::kProcess) dead = holder.id;
      return holder.kind != HolderKind::kChannel;
    });
    if (open) break;
  }
  if (open && dead != 0 && s.is_dead(dead)) reap(s, dead);
  return open;
}

std::uint32_t find_returned(Segment& s, std::uint32_t id, std::uint32_t* heads, std::uint32_t slabs,
                            ReturnedMessage* out, std::uint32_t capacity) noexcept {
  const std::uint32_t n = RunHeap(s).list(RunState::kSlab, heads, slabs);
  std::uint32_t found = 0;
  for (std::uint32_t k = 0; k < n; ++k)
    any_leased(s, heads[k], [&](const BlockPlace& p, Holder holder, Lease) {
      if (holder != by_channel(id)) return false;
      const std::uint32_t order = A::load_relaxed(s.block(p.offset).order);
      // The oldest `capacity` in order: the numbers wrap, so by their difference.
      std::uint32_t at = std::min(found, capacity);
      ++found;
      while (at > 0 && static_cast<std::int32_t>(order - out[at - 1].order) < 0) {
        if (at < capacity) out[at] = out[at - 1];
        --at;
      }
      if (at < capacity) out[at] = {p.offset, order};
      return false;
    });
  return found;
}

}  // namespace ipcbuf
