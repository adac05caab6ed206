// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/block.hpp"

#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/lease.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf {

using A = Atomics;

bool read_holder(Segment& s, const BlockPlace& p, Holder& out) noexcept {
  const std::uint64_t word = A::load_acquire(s.block(p.offset).holder);
  out = Holder::unpack(word);
  return (word & kCheckMask) == p.check;
}

void note_slot(Segment& s, const BlockPlace& p) noexcept {
  auto& set = s.page(p.head).slot_set;
  const std::uint64_t bit = slot_bit(s.token());
  // relaxed: bits are only added while blocks are out, and an extra bit costs a look
  if ((A::load_relaxed(set) & bit) == 0) A::fetch_or(set, bit);
}

void store_holder(Segment& s, const BlockPlace& p, Holder to) noexcept {
  A::store_release(s.block(p.offset).holder, holder_word(p, to));  // K2 release
}

bool change_holder(Segment& s, const BlockPlace& p, Holder from, Holder to) noexcept {
  std::uint64_t expected = holder_word(p, from);
  return A::compare_exchange(s.block(p.offset).holder, expected, holder_word(p, to));  // K1, K2
}

namespace {

bool is_empty(Segment& s, std::uint32_t head) noexcept {
  BlockPlace p{};
  if (!s.place(s.page_offset(head), p)) return false;
  const std::uint32_t salt = A::load_relaxed(s.page(head).salt);
  for (std::uint32_t i = 0; i < p.count; ++i) {
    // The whole word: a header that somebody wrote over is not free, whatever its kind says.
    const std::uint64_t at = p.offset + i * p.size();
    // In one order with the run's word: the last one out and the orphaner look at each other's.
    if (A::load_seq(s.block(at).holder) != s.check_of(at, p.units, salt)) return false;
  }
  return true;
}

}  // namespace

bool free_if_held(Segment& s, std::uint64_t offset, Holder from) noexcept {
  BlockPlace p{};
  if (!s.place(offset, p)) return false;
  if (from.kind == HolderKind::kProcess && is_ticket(s, offset)) {
    Holder now{};
    if (!read_holder(s, p, now) || now != from) return false;
    const Holder me = by_process(s.token());
    if (from != me) {  // T2
      note_slot(s, p);
      if (!change_holder(s, p, from, me)) return false;
      from = me;
    }
    drop_ticket(s, offset);
  }
  if (!change_holder(s, p, from, kNobody)) return false;  // K1 release, to allocate
  A::fetch_or(s.page(p.head).returned, 1ULL << p.index);
  // The last one out of an ownerless slab gives it back. (Our store, then our look; the
  // orphaner stores, then looks: one of the two sees the other.)
  const Run run = Run::unpack(A::load_seq(s.run(p.head)));
  if (run.state == RunState::kSlab && run.token == 0 && is_empty(s, p.head)) retire_slab(s, p.head);
  return true;
}

Status free_block(Segment& s, std::uint64_t offset, Holder from) noexcept {
  if (free_if_held(s, offset, from)) return Status::kOk;
  BlockPlace p{};
  Holder now{};
  return s.place(offset, p) && read_holder(s, p, now) ? Status::kCorrupted : s.poison(__LINE__);
}

Status free_block(Segment& s, std::uint64_t offset) noexcept {
  if (s.token() == 0) return s.no_seat();  // then nothing is ours
  return free_block(s, offset, by_process(s.token()));
}

bool retire_slab(Segment& s, std::uint32_t head) noexcept {
  const Holder me = by_process(s.token());
  for (;;) {
    // B3: the salt before the run. If that is seen to be a slab, this is its salt, or an older
    // one, with which no claim below succeeds.
    const std::uint32_t salt = A::load_acquire(s.page(head).salt);  // K3 acquire, from new_slab
    BlockPlace p{};
    if (!s.place(s.page_offset(head), p)) return false;
    note_slot(s, p);
    const auto block = [&](std::uint32_t i) {
      BlockPlace b = p;
      b.index = i;
      b.offset = p.offset + i * p.size();
      b.check = s.check_of(b.offset, p.units, salt);
      return b;
    };
    std::uint32_t i = 0;
    while (i < p.count && change_holder(s, block(i), kNobody, me)) ++i;
    // Headers of a slab that was given back may still say free: then there is nothing to take. Its
    // next owner writes them anew before it is a slab, so both looks together tell.
    const bool is_ours = i == p.count &&
                         Run::unpack(A::load_seq(s.run(head))).state == RunState::kSlab &&
                         A::load_acquire(s.block(p.offset).holder) == holder_word(block(0), me);
    if (is_ours) return RunHeap(s).free(head) == Status::kOk;
    std::uint64_t undone = 0;
    while (i-- > 0)
      if (change_holder(s, block(i), me, kNobody)) undone |= 1ULL << i;
    // Its owner may have met us there, and forgot the block.
    if (undone != 0) A::fetch_or(s.page(head).returned, undone);
    // Who freed the last block meanwhile saw our claims and left the slab to us.
    const Run run = Run::unpack(A::load_seq(s.run(head)));
    if (run.state != RunState::kSlab || run.token != 0 || !is_empty(s, head)) return false;
  }
}

void orphan_slab(Segment& s, std::uint32_t head) noexcept {
  std::uint64_t word = A::load_acquire(s.run(head));
  Run run = Run::unpack(word);
  if (run.state != RunState::kSlab) return;
  run.token = 0;
  if (A::compare_exchange(s.run(head), word, run.pack()) && is_empty(s, head)) retire_slab(s, head);
}

// ---- blocks held by several processes ----

Status share_block(Segment& s, std::uint64_t offset, Token with) noexcept {
  BlockPlace p{};
  Holder now{};
  if (!s.place(offset, p) || !read_holder(s, p, now)) return s.poison(__LINE__);
  if (now.kind == HolderKind::kEntry) {
    if (index_of(now.id) >= s.constants().max_entries) return s.poison(__LINE__);
    if (with == 0) return Status::kOk;
    return add_hold(s, s.entry(index_of(now.id)).holds, Hold{HoldKind::kProcess, with, 1});
  }
  const Token me = s.token();
  if (now != by_process(me)) return Status::kCorrupted;
  std::uint32_t index = 0;
  if (const Status status = claim_entry(s, index); status != Status::kOk) return status;
  SharedEntry& entry = s.entry(index);
  const EntryWord claimed = EntryWord::unpack(A::load_acquire(entry.state));
  // Cells, then kActive, then the holder: an active entry without cells is never a new one.
  A::store_release(entry.holds.cells[0], Hold{HoldKind::kProcess, me, 1}.pack());
  if (with != 0) A::store_release(entry.holds.cells[1], Hold{HoldKind::kProcess, with, 1}.pack());
  A::store_release(entry.state,
                   EntryWord{EntryState::kActive, claimed.generation, offset / kCacheLine}.pack());
  store_holder(s, p, by_entry(make_id(index, claimed.generation)));
  return Status::kOk;
}

void finish_entry(Segment& s, std::uint32_t index) noexcept {
  SharedEntry& entry = s.entry(index);
  std::uint64_t word = A::load_acquire(entry.state);
  const EntryWord state = EntryWord::unpack(word);
  if (state.state != EntryState::kActive || !is_unheld(s, entry.holds)) return;
  const Holder shared = by_entry(make_id(index, state.generation));
  BlockPlace p{};
  // No such block: who shared it died before its holder word said so, and it went with the dead.
  const bool placed = s.place(state.value * kCacheLine, p);
  // Election: of all who find the entry empty, one becomes the holder. If we die here the block
  // is ours, and the entry without cells is finished by the next who looks.
  if (placed) note_slot(s, p);
  const bool won = placed && change_holder(s, p, shared, by_process(s.token()));
  adopt_chain(s, entry.holds);
  const std::uint64_t chain = A::load_acquire(entry.holds.next);
  if (A::compare_exchange(entry.state, word,
                          EntryWord{EntryState::kFree, state.generation + 1, 0}.pack()))
    release_chain(s, chain);
  if (!won) return;
  // A lease that nobody ended is handed back, as if its last holder had died.
  const std::uint64_t lease = A::load_relaxed(s.block(p.offset).lease);
  if (lease != 0 && Lease::unpack(lease).taken) {
    (void)hand_back(s, p.offset, by_process(s.token()));
  } else {
    (void)free_block(s, p.offset);
  }
}

Status drop_block(Segment& s, std::uint64_t offset) noexcept {
  if (s.token() == 0) return s.no_seat();
  BlockPlace p{};
  Holder now{};
  if (!s.place(offset, p) || !read_holder(s, p, now)) return s.poison(__LINE__);
  if (now.kind != HolderKind::kEntry) return free_block(s, offset);
  const std::uint32_t index = index_of(now.id);
  if (index >= s.constants().max_entries) return s.poison(__LINE__);
  if (drop_hold(s, s.entry(index).holds, HoldKind::kProcess, s.token(), false))
    finish_entry(s, index);
  return Status::kOk;
}

}  // namespace ipcbuf
