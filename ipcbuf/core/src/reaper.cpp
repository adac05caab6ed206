// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/reaper.hpp"

#include <initializer_list>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/lease.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/slots.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

std::vector<std::uint32_t> runs_in(Segment& s, RunState state) {
  // Sized before the lock is taken: nothing is allocated under an owner word.
  std::vector<std::uint32_t> out(s.committed_pages());
  out.resize(RunHeap(s).list(state, out.data(), static_cast<std::uint32_t>(out.size())));
  return out;
}

/// Steps 1 and 2 for one channel.
void reap_channel(Segment& s, std::uint32_t index, Token dead) {
  ChannelRow& row = s.channel(index);
  const std::uint32_t dead_pid = s.slot(slot_of(dead)).pid;
  std::uint64_t word = A::load_acquire(row.state);
  const ChannelWord state = ChannelWord::unpack(word);
  if (state.state == ChannelState::kFree) return;
  if (state.state != ChannelState::kActive) {
    // Half made or half destroyed by the dead: go on with the destruction in our name.
    if (state.token == dead &&
        A::compare_exchange(
            row.state, word,
            ChannelWord{ChannelState::kDestroying, state.generation, s.token()}.pack()))
      destroy_channel(s, index);
    if (state.state == ChannelState::kClaimed && state.token != dead) {
      // Half made by a living process, of which another thread has forked: the child had a hold on
      // the ends that were there.
      drop_hold(s, row.sender_holds, HoldKind::kProcess, dead, true);
      drop_hold(s, row.receiver_holds, HoldKind::kProcess, dead, true);
      settle_channel(s, index);  // it may be active by now, and its maker gone
    }
    return;
  }
  for (const End end : {End::kSender, End::kReceiver}) {
    EndRow& side = end == End::kSender ? row.sender : row.receiver;
    auto& end_state = end == End::kSender ? row.sender_state() : row.receiver_state();
    if (side.lock.owner() == dead) recover_end_lock(s, index, end);
    HoldList& holds = end == End::kSender ? row.sender_holds : row.receiver_holds;
    auto open = static_cast<std::uint32_t>(EndState::kOpen);
    // While the dead has its hold, which nobody but us drops, the channel is not destroyed and
    // nobody else joins an exclusive end, so what is read here belongs together.
    if (has_hold(s, holds, HoldKind::kProcess, dead) && A::load_acquire(side.owner) == dead &&
        A::load_acquire(end_state) == open) {
      // No lock tells the next user to recover the mirrors, so we do, before the end is seen dead.
      const std::uint32_t id = channel_id(index, row);
      end == End::kSender ? recover_sender(s, row, id) : recover_receiver(s, row, id);
      if (A::compare_exchange(end_state, open, static_cast<std::uint32_t>(EndState::kDead)))  // C4
        wake_channel(s, row);
    }
    if (has_hold(s, holds, HoldKind::kProcess, dead)) {
      mark_left(side, dead_pid);
      drop_hold(s, holds, HoldKind::kProcess, dead, true);
    }
    drop_hold(s, holds, HoldKind::kTransit, dead, true);
  }
  settle_channel(s, index);
}

/// Step 3.
void reap_entries(Segment& s, Token dead) {
  const std::uint32_t high = s.entries_high();
  const std::uint32_t channels = s.channels_high();
  std::vector<std::uint64_t> chained((s.constants().max_entries + 63) / 64);
  for (std::uint32_t i = 0; i < channels; ++i) {
    ChannelRow& row = s.channel(i);
    if (ChannelWord::unpack(A::load_acquire(row.state)).state == ChannelState::kFree) continue;
    mark_chain(s, row.sender_holds, chained.data());
    mark_chain(s, row.receiver_holds, chained.data());
  }
  for (std::uint32_t i = 0; i < high; ++i) {
    SharedEntry& entry = s.entry(i);
    if (EntryWord::unpack(A::load_acquire(entry.state)).state != EntryState::kActive) continue;
    drop_hold(s, entry.holds, HoldKind::kProcess, dead, true);
    mark_chain(s, entry.holds, chained.data());
    finish_entry(s, i);  // if nobody is left
  }
  for (std::uint32_t i = 0; i < high; ++i) {
    SharedEntry& entry = s.entry(i);
    std::uint64_t word = A::load_acquire(entry.state);
    const EntryWord state = EntryWord::unpack(word);
    if (state.state == EntryState::kClaimed && state.value == dead &&
        (chained[i / 64] >> (i % 64) & 1) == 0)
      A::compare_exchange(entry.state, word,
                          EntryWord{EntryState::kFree, state.generation + 1, 0}.pack());
  }
}

/// Step 4.
void reap_blocks(Segment& s, Token dead, const std::vector<std::uint32_t>& slabs) {
  struct Candidate {
    std::uint64_t offset;
    Holder holder;
    std::uint64_t lease;
  };
  std::vector<Candidate> candidates;
  for (const std::uint32_t head : slabs) {
    BlockPlace p{};
    if (!s.place(s.page_offset(head), p)) continue;
    const bool may_hold = (A::load_acquire(s.page(head).slot_set) & slot_bit(dead)) != 0;
    if (!may_hold && Run::unpack(A::load_acquire(s.run(head))).token != dead) continue;
    const std::uint32_t salt = A::load_relaxed(s.page(head).salt);
    for (std::uint32_t i = 0; i < p.count; ++i) {
      const std::uint64_t at = p.offset + i * p.size();
      // K2 acquire, from store_holder and change_holder: the creator of a ring.
      const std::uint64_t word = A::load_acquire(s.block(at).holder);
      const Holder holder = Holder::unpack(word);
      const bool ring_of_dead =
          holder.kind == HolderKind::kChannel && A::load_acquire(s.block(at).creator) == dead;
      const std::uint64_t lease = A::load_acquire(s.block(at).lease);
      // The dead may have handed it back and not yet said so (E4).
      const bool returned = holder.kind == HolderKind::kChannel && lease != 0;
      if (holder != by_process(dead) && !ring_of_dead && !returned) continue;
      // If the slab was given back meanwhile, what was a header may lie among somebody's bytes.
      if ((word & kCheckMask) == s.check_of(at, p.units, salt))
        candidates.push_back({at, holder, lease});
    }
  }
  if (candidates.empty()) return;
  Reached reached;
  const std::uint32_t high = s.channels_high();
  for (std::uint32_t i = 0; i < high; ++i) reach(s, i, reached);
  for (const Candidate& c : candidates) {
    if (c.holder.kind == HolderKind::kChannel && c.lease != 0) {
      remember_returned(s, c.offset, c.holder.id);
      continue;
    }
    const auto& live = c.holder.kind == HolderKind::kChannel ? reached.rings : reached.blocks;
    if (live.contains(c.offset)) continue;
    // A receiver that moved on since frees its ring by itself; it wrote `creator` before (C2).
    if (c.holder.kind == HolderKind::kChannel && A::load_acquire(s.block(c.offset).creator) != dead)
      continue;
    // A compare-and-swap: a receiver may have claimed it since (D5), freed it, and given its slab
    // back.
    if (c.lease != 0 && Lease::unpack(c.lease).taken) {
      (void)hand_back(s, c.offset, c.holder);  // E3
    } else {
      (void)free_if_held(s, c.offset, c.holder);
    }
  }
}

}  // namespace

void reach(Segment& s, std::uint32_t index, Reached& out) {
  ChannelRow& row = s.channel(index);
  const std::uint64_t state = A::load_acquire(row.state);
  if (ChannelWord::unpack(state).state == ChannelState::kFree) return;
  const std::uint32_t id = channel_id(index, row);
  if (row.type == ChannelType::kStatic) out.rings.insert(A::load_acquire(row.value));
  // A failure means that the receiver moved on meanwhile; only a corrupted chain goes on failing,
  // and does so while nobody receives.
  std::uint64_t stood = 0;
  int stands = 0;
  for (int tries = 0; tries < 100'000 && stands < 200; ++tries) {
    std::uint64_t at = A::load_acquire(row.receiver.ring);
    Ring<> front;
    const std::uint64_t stand =
        at ^ (open_ring(s, at, id, front) ? A::load_acquire(front.header->read_word) << 1 : 0);
    stands = stand == stood ? stands + 1 : 0;
    stood = stand;
    bool whole = true;
    std::uint64_t base = 0;
    for (std::uint32_t steps = 0; at != 0 && steps <= s.constants().max_pages; ++steps) {
      Ring<> ring;
      if (!open_ring(s, at, id, ring)) {
        whole = false;  // its receiver moved on, or it is corrupted
        break;
      }
      // A ring is freed when its receiver moves on, and its memory may come back as a later ring
      // of the same channel; the items sent before it tell the two apart.
      if (steps == 0) base = ring.header->items_base;
      A::load_barrier();  // before the look whether it is still the first
      if (ring.header->items_base != base ||
          (steps == 0 && A::load_acquire(row.receiver.ring) != at)) {
        whole = false;
        break;
      }
      out.rings.insert(at);
      RingWord read = RingWord::unpack(A::load_acquire(ring.header->read_word));
      const RingWord write = RingWord::unpack(A::load_acquire(ring.header->write_word));
      std::uint32_t index_at = read.index;
      // The other way round: read behind what we saw written, which is all right.
      if (static_cast<std::int32_t>(write.items - read.items) > 0 &&
          !is_possible(ring, read, write)) {
        whole = false;
        break;
      }
      while (static_cast<std::int32_t>(write.items - read.items) > 0) {
        RecordHeader header{};
        std::uint32_t start = 0;
        const bool parsed = parse_record(ring, index_at, header, start);
        std::uint64_t offsets[kMaxBlocks];
        const std::uint32_t n = parsed ? header.blocks : 0;
        for (std::uint32_t b = 0; b < n; ++b)
          offsets[b] = A::load_relaxed(ring.word_at(
              start + kRecordHeader + b * static_cast<std::uint32_t>(sizeof(BlockRef))));
        // Believe it only if its receiver has not come past it meanwhile.
        A::load_barrier();
        const RingWord now = RingWord::unpack(A::load_acquire(ring.header->read_word));
        if (static_cast<std::int32_t>(now.items - read.items) > 0) {
          read = now;
          index_at = now.index;
          continue;
        }
        if (!parsed) {
          whole = false;
          break;
        }
        for (std::uint32_t b = 0; b < n; ++b) out.blocks.insert(offsets[b]);
        index_at = start + header.size;
        ++read.items;
      }
      const std::uint64_t next = A::load_acquire(ring.header->next);
      // Behind `next` nothing is written any more, so this is where the next ring begins.
      const RingWord last = RingWord::unpack(A::load_acquire(ring.header->write_word));
      Ring<> still;
      if (!whole || !open_ring(s, at, id, still) || ring.header->items_base != base) {
        whole = false;
        break;
      }
      base = static_cast<std::uint32_t>(base + last.items);
      at = next;
    }
    if (whole || A::load_acquire(row.state) != state) return;
  }
  (void)s.poison(__LINE__);
}

void reap(Segment& s, Token dead) {
  SlotRow& slot = s.slot(slot_of(dead));
  const auto still_there = [&] {
    const std::uint32_t word = A::load_acquire(slot.state);
    return slot_state(word) != SlotState::kFree && slot_token(slot_of(dead), word) == dead;
  };
  if (!still_there() || s.is_poisoned()) return;
  const bool held = slot.reaper.acquire(
      s.token(), platform::kForever, [&](Token t) { return s.is_dead(t); }, [] {});
  if (!held) return;
  if (still_there()) {
    if (s.header().heap_lock.owner() == dead) RunHeap(s).recover_lock();
    recover_directory_lock(s);  // before the channels: a half-made one must not stand there
    const std::uint32_t channels = s.channels_high();
    for (std::uint32_t i = 0; i < channels; ++i) reap_channel(s, i, dead);
    reap_entries(s, dead);
    const std::vector<std::uint32_t> slabs = runs_in(s, RunState::kSlab);
    reap_blocks(s, dead, slabs);
    // Ownerless ones as well: whoever freed the last block or orphaned the slab may have died
    // before it could give the slab back.
    for (const std::uint32_t head : slabs) {
      const Token owner = Run::unpack(A::load_acquire(s.run(head))).token;
      if (owner == dead || owner == 0) orphan_slab(s, head);
    }
    for (const RunState taken : {RunState::kReserved, RunState::kUnbacked})
      for (const std::uint32_t head : runs_in(s, taken))
        if (Run::unpack(A::load_acquire(s.run(head))).token == dead) (void)RunHeap(s).free(head);
    A::fetch_add(s.header().reaps, 1);
    A::fetch_add(s.header().death_epoch, 1);
    std::uint32_t generation = (generation_of(dead) + 1) & kGenerationMask;
    if (generation == 0) generation = 1;
    A::store_release(slot.state, static_cast<std::uint32_t>(SlotState::kFree) |
                                     generation << kSlotBits);  // S2, the commit
  }
  slot.reaper.release();
}

int reap_some(Segment& s, int slots) {
  const std::uint32_t high = s.slots_high();
  if (high == 0 || s.is_poisoned()) return 0;
  int buried = 0;
  for (int k = 0; k < slots && static_cast<std::uint32_t>(k) < high; ++k) {
    const std::uint32_t i = A::fetch_add(s.header().reap_hint, 1) % high;
    const std::uint32_t word = A::load_acquire(s.slot(i).state);
    const Token token = slot_token(i, word);
    if (slot_state(word) == SlotState::kFree || !s.is_dead(token)) continue;
    reap(s, token);
    ++buried;
  }
  return buried;
}

int reap_all(Segment& s) {
  const std::uint32_t high = s.slots_high();
  int buried = 0;
  for (std::uint32_t i = 0; i < high && !s.is_poisoned(); ++i) {
    const std::uint32_t word = A::load_acquire(s.slot(i).state);
    const Token token = slot_token(i, word);
    if (slot_state(word) == SlotState::kFree || !s.is_dead(token)) continue;
    reap(s, token);
    ++buried;
  }
  return buried;
}

void leave(Segment& s, Token token) { reap(s, token); }

void steal_empty_slabs(Segment& s) {
  for (const std::uint32_t head : runs_in(s, RunState::kSlab)) retire_slab(s, head);
}

}  // namespace ipcbuf
