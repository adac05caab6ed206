// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/hold_list.hpp"

#include "ipcbuf/reaper.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

/// Calls `visit(cell)` for every cell of the list until it answers true. Bounded walk.
template <class Visit>
bool any_cell(Segment& s, HoldList& list, Visit&& visit) noexcept {
  HoldList* part = &list;
  for (std::uint32_t steps = 0; steps <= s.constants().max_entries; ++steps) {
    for (auto& cell : part->cells)
      if (visit(cell)) return true;
    const std::uint64_t next = A::load_acquire(part->next);
    if (next == 0) return false;
    if (next > s.constants().max_entries) break;
    part = &s.entry(static_cast<std::uint32_t>(next - 1)).holds;
  }
  (void)s.poison(__LINE__);
  return false;
}

bool same(const Hold& a, HoldKind kind, std::uint32_t id) noexcept {
  return a.kind == kind && a.id == id;
}

}  // namespace

HoldList& hold_list(Segment& s, std::uint32_t channel_id, End end) noexcept {
  ChannelRow& row = s.channel(index_of(channel_id));
  return end == End::kSender ? row.sender_holds : row.receiver_holds;
}

Status claim_entry(Segment& s, std::uint32_t& index) noexcept {
  const std::uint32_t n = s.constants().max_entries;
  const std::uint32_t hint = A::load_relaxed(s.header().entry_hint);  // relaxed: never trusted
  for (std::uint32_t k = 0; k < n; ++k) {
    const std::uint32_t i = (hint + k) % n;
    SharedEntry& entry = s.entry(i);
    std::uint32_t high = A::load_acquire(s.header().entries_high);
    if (i >= high) {
      // A row that was never used: reserve its page of the file before the first store.
      constexpr std::uint64_t kChunk = 4096;
      const std::uint64_t at = s.constants().entries + std::uint64_t{i} * sizeof(SharedEntry);
      if (s.reserve(at / kChunk * kChunk, kChunk) != 0)
        return s.is_lost() ? Status::kLost : Status::kExhausted;
      while (high <= i && !A::compare_exchange(s.header().entries_high, high, i + 1)) {
      }
    }
    std::uint64_t word = A::load_acquire(entry.state);
    const EntryWord old = EntryWord::unpack(word);
    if (old.state != EntryState::kFree) continue;
    if (!A::compare_exchange(entry.state, word,
                             EntryWord{EntryState::kClaimed, old.generation, s.token()}.pack()))
      continue;
    A::store_relaxed(entry.holds.next, 0);
    for (auto& cell : entry.holds.cells) A::store_relaxed(cell, 0);
    A::store_relaxed(s.header().entry_hint, (i + 1) % n);
    index = i;
    return Status::kOk;
  }
  return Status::kTooMany;
}

Status try_add_hold(Segment& s, HoldList& list, Hold hold, SpareEntry& spare) noexcept {
  // Our own cell first: a process has one cell per list however many handles it has.
  const bool added = any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    std::uint64_t word = A::load_acquire(cell);
    while (same(Hold::unpack(word), hold.kind, hold.id)) {
      Hold more = Hold::unpack(word);
      more.count += hold.count;
      if (A::compare_exchange(cell, word, more.pack())) return true;
    }
    return false;
  });
  if (added) return Status::kOk;
  for (;;) {
    const bool made = any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
      std::uint64_t empty = 0;
      return A::load_acquire(cell) == 0 && A::compare_exchange(cell, empty, hold.pack());
    });
    if (made) return Status::kOk;
    if (s.is_poisoned()) return s.fault();
    if (spare.next_ == 0) return Status::kFull;
    // Full of the living: chain one more entry to the last part.
    HoldList* last = &list;
    for (std::uint32_t steps = 0;; ++steps) {
      std::uint64_t none = 0;
      if (A::compare_exchange(last->next, none, spare.next_)) break;  // H2
      if (none > s.constants().max_entries || steps > s.constants().max_entries)
        return s.poison(__LINE__);
      last = &s.entry(static_cast<std::uint32_t>(none - 1)).holds;
    }
    spare.next_ = 0;
  }
}

Status SpareEntry::make_room(HoldList& list) noexcept {
  if (!reaped_) {
    reaped_ = true;
    if (reap_dead_holders(s_, list)) return Status::kOk;
  }
  if (next_ != 0) return Status::kOk;
  std::uint32_t index = 0;
  if (const Status status = claim_entry(s_, index); status != Status::kOk) return status;
  next_ = std::uint64_t{index} + 1;
  return Status::kOk;
}

SpareEntry::~SpareEntry() {
  if (next_ != 0) release_chain(s_, next_);
}

Status add_hold(Segment& s, HoldList& list, Hold hold) noexcept {
  SpareEntry spare(s);
  for (;;) {
    Status status = try_add_hold(s, list, hold, spare);
    if (status != Status::kFull) return status;
    status = spare.make_room(list);
    if (status != Status::kOk) return status;
  }
}

bool drop_hold(Segment& s, HoldList& list, HoldKind kind, std::uint32_t id, bool all) noexcept {
  any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    std::uint64_t word = A::load_acquire(cell);
    while (same(Hold::unpack(word), kind, id)) {
      Hold less = Hold::unpack(word);
      less.count = all || less.count == 0 ? 0 : less.count - 1;
      if (A::compare_exchange(cell, word, less.count == 0 ? 0 : less.pack())) return !all;
    }
    return false;
  });
  return is_unheld(s, list);
}

bool has_hold(Segment& s, HoldList& list, HoldKind kind, std::uint32_t id) noexcept {
  return any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    return same(Hold::unpack(A::load_acquire(cell)), kind, id);
  });
}

bool is_unheld(Segment& s, HoldList& list) noexcept {
  return !any_cell(s, list, [](Atomic<std::uint64_t>& cell) { return A::load_acquire(cell) != 0; });
}

void list_holds(Segment& s, HoldList& list, std::size_t limit, std::vector<Hold>& out) {
  const std::uint32_t entries = s.entries_high();
  const HoldList* part = &list;
  for (std::uint32_t steps = 0; steps <= entries; ++steps) {
    for (const auto& cell : part->cells) {
      const Hold hold = Hold::unpack(A::load_acquire(cell));
      if (hold.kind == HoldKind::kNone || hold.count == 0) continue;
      if (out.size() >= limit) return;
      out.push_back(hold);
    }
    const std::uint64_t next = A::load_acquire(part->next);
    if (next == 0 || next > entries) return;
    part = &s.entry(static_cast<std::uint32_t>(next - 1)).holds;
  }
}

bool reap_dead_holders(Segment& s, HoldList& list) noexcept {
  bool any = false;
  any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    const Hold hold = Hold::unpack(A::load_acquire(cell));
    if ((hold.kind == HoldKind::kProcess || hold.kind == HoldKind::kTransit) && hold.count != 0 &&
        s.is_dead(hold.id)) {
      reap(s, hold.id);
      any = true;
    }
    return false;
  });
  return any;
}

bool has_living_holder(Segment& s, HoldList& list) noexcept {
  return any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    const Hold hold = Hold::unpack(A::load_acquire(cell));
    return hold.count != 0 && !s.is_dead(hold.id);
  });
}

std::uint64_t count_holds(Segment& s, HoldList& list) noexcept {
  std::uint64_t sum = 0;
  any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    sum += Hold::unpack(A::load_acquire(cell)).count;
    return false;
  });
  return sum;
}

Token any_holder(Segment& s, HoldList& list) noexcept {
  Token found = 0;
  any_cell(s, list, [&](Atomic<std::uint64_t>& cell) {
    const Hold hold = Hold::unpack(A::load_acquire(cell));
    if (hold.count != 0) found = hold.id;
    return hold.count != 0;
  });
  return found;
}

void mark_chain(Segment& s, HoldList& list, std::uint64_t* bitmap) noexcept {
  std::uint64_t next = A::load_acquire(list.next);
  for (std::uint32_t steps = 0; next != 0 && steps < s.constants().max_entries; ++steps) {
    if (next > s.constants().max_entries) return;
    const auto i = static_cast<std::uint32_t>(next - 1);
    bitmap[i / 64] |= 1ULL << (i % 64);
    next = A::load_acquire(s.entry(i).holds.next);
  }
}

void adopt_chain(Segment& s, HoldList& list) noexcept {
  std::uint64_t next = A::load_acquire(list.next);
  for (std::uint32_t steps = 0; next != 0 && steps < s.constants().max_entries; ++steps) {
    if (next > s.constants().max_entries) return;
    SharedEntry& entry = s.entry(static_cast<std::uint32_t>(next - 1));
    std::uint64_t word = A::load_acquire(entry.state);
    const EntryWord old = EntryWord::unpack(word);
    next = A::load_acquire(entry.holds.next);
    if (old.state != EntryState::kClaimed) return;
    // Another finisher may have been faster, and the entry another's by now: not by plain store.
    A::compare_exchange(entry.state, word,
                        EntryWord{EntryState::kClaimed, old.generation, s.token()}.pack());
  }
}

void release_chain(Segment& s, std::uint64_t next) noexcept {
  for (std::uint32_t steps = 0; next != 0 && steps < s.constants().max_entries; ++steps) {
    if (next > s.constants().max_entries) return;
    SharedEntry& entry = s.entry(static_cast<std::uint32_t>(next - 1));
    next = A::load_acquire(entry.holds.next);
    const EntryWord word = EntryWord::unpack(A::load_acquire(entry.state));
    if (word.state == EntryState::kClaimed)
      A::store_release(entry.state, EntryWord{EntryState::kFree, word.generation + 1, 0}.pack());
  }
}

}  // namespace ipcbuf
