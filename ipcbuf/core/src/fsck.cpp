// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/fsck.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <unordered_map>

#include "ipcbuf/block.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/ring.hpp"
#include "ipcbuf/slots.hpp"
#include "ipcbuf/static_area.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

class Walk {
 public:
  Walk(Segment& s, bool exact) : s_(s), exact_(exact) {}

  Census run() {
    slots();
    channels();
    if (exact_) directory();
    runs();
    entries();
    if (s_.is_poisoned()) problem("poisoned at line %llu", A::load_relaxed(s_.header().poisoned));
    if (!exact_) census_.problems.clear();
    return census_;
  }

 private:
  template <class... Args>
  void problem(const char* format, Args... args) {
    char text[160];
    std::snprintf(text, sizeof text, format, static_cast<unsigned long long>(args)...);
    census_.problems.emplace_back(text);
  }

  bool is_seated(Token token) {
    const std::uint32_t word = A::load_acquire(s_.slot(slot_of(token)).state);
    return slot_state(word) != SlotState::kFree && slot_token(slot_of(token), word) == token;
  }

  void slots() {
    const std::uint32_t high = s_.slots_high();
    for (std::uint32_t i = 0; i < high; ++i) {
      const std::uint32_t word = A::load_acquire(s_.slot(i).state);
      const SlotState state = slot_state(word);
      const bool for_parcels = ward_of(word, A::load_acquire(s_.slot(i).ward)).pid != 0;
      if (state != SlotState::kFree) ++(for_parcels ? census_.parcels : census_.processes);
      if (state > SlotState::kAlive) problem("slot %llu: state %llu", i, std::uint64_t(state));
    }
  }

  void channels() {
    const std::uint32_t high = s_.channels_high();
    for (std::uint32_t i = 0; i < high; ++i) {
      ChannelRow& row = s_.channel(i);
      const ChannelWord word = ChannelWord::unpack(A::load_acquire(row.state));
      if (word.state == ChannelState::kFree) continue;
      ++census_.channels;
      if (word.state != ChannelState::kActive) {
        if (!is_seated(word.token)) problem("channel %llu: half made by nobody", i);
        continue;
      }
      reach(s_, i, reached_);
      if (exact_ && row.type == ChannelType::kRecord) chain(i, row);
      if (exact_ && row.type == ChannelType::kStatic) area(i, row, word.generation);
      const auto sent = static_cast<std::uint32_t>(A::load_acquire(row.sender.items));
      const auto got = static_cast<std::uint32_t>(A::load_acquire(row.receiver.items));
      if (static_cast<std::int32_t>(sent - got) > 0) census_.messages += sent - got;
    }
  }

  void area(std::uint32_t index, ChannelRow& row, std::uint32_t generation) {
    BlockPlace p{};
    Holder holder{};
    if (!s_.place(area_block(s_, row), p) || !read_holder(s_, p, holder) ||
        holder != by_channel(make_id(index, generation)) || area_length(s_, row) == 0)
      problem("channel %llu: its block is none", index);
  }

  /// J2, J3 of directory.hpp.
  void directory() {
    if (s_.header().directory_lock.owner() != 0) {
      problem("the directory is locked");
      return;
    }
    const std::uint32_t high = s_.channels_high();
    std::map<std::string, std::uint32_t> keys;
    for (std::uint32_t i = 0; i < high; ++i) {
      ChannelRow& row = s_.channel(i);
      if (ChannelWord::unpack(A::load_acquire(row.state)).state != ChannelState::kActive) continue;
      const std::uint32_t marks = A::load_acquire(row.marks);
      if (((marks & kKeyed) != 0) != (row.key.kind != KeyKind::kNone) ||
          row.key.kind > KeyKind::kStr || row.key.length > kMaxKey)
        problem("channel %llu: impossible key", i);
      if ((marks & (kKeyed | kRemoved)) != kKeyed) continue;
      const std::string key(reinterpret_cast<const char*>(&row.key), sizeof row.key);
      if (!keys.emplace(key, i).second)
        problem("channels %llu and %llu have the same key", keys[key], i);
      if (directory_row(s_, row.key) != i + 1)
        problem("channel %llu: the directory does not find it", i);
    }
    const std::uint32_t bits = directory_bits(s_);
    if (bits != A::load_acquire(s_.header().directory_bits))
      problem("impossible size of the directory: 2^%llu places",
              A::load_acquire(s_.header().directory_bits));
    std::uint32_t used = 0;
    std::uint32_t live = 0;
    for (std::uint32_t at = 0; bits != 0 && at < 1U << bits; ++at) {
      const std::uint32_t value = A::load_acquire(s_.key_table()[at]);
      used += value != 0 ? 1 : 0;
      live += value != 0 && value != kTombstone ? 1 : 0;
    }
    if (live != keys.size()) problem("%llu keys, %llu in the directory", keys.size(), live);
    if (used != A::load_acquire(s_.header().directory_used))
      problem("%llu places of the directory are used, counted %llu", used,
              A::load_acquire(s_.header().directory_used));
  }

  void chain(std::uint32_t index, ChannelRow& row) {
    const std::uint32_t id = channel_id(index, row);
    std::uint64_t at = A::load_acquire(row.receiver.ring);
    std::uint32_t items = 0;
    bool saw_tail = false;
    for (std::uint32_t steps = 0; at != 0; ++steps) {
      Ring<> ring;
      if (steps > s_.constants().max_pages || !open_ring(s_, at, id, ring)) {
        problem("channel %llu: ring at %llu is none", index, at);
        return;
      }
      saw_tail = saw_tail || at == A::load_acquire(row.sender.ring);
      const RingWord read = RingWord::unpack(A::load_acquire(ring.header->read_word));
      const RingWord write = RingWord::unpack(A::load_acquire(ring.header->write_word));
      std::uint32_t place = read.index;
      if (!is_possible(ring, read, write)) {
        problem("channel %llu: %llu items in ring %llu", index, write.items - read.items, at);
        return;
      }
      items += write.items - read.items;
      for (std::uint32_t n = write.items - read.items; n > 0; --n) {
        RecordHeader header{};
        std::uint32_t start = 0;
        if (!parse_record(ring, place, header, start)) {
          problem("channel %llu: record at %llu of ring %llu is none", index, place, at);
          return;
        }
        const auto* refs = reinterpret_cast<const BlockRef*>(ring.data + start + kRecordHeader);
        for (std::uint32_t b = 0; b < header.blocks; ++b)
          if (++flights_[refs[b].offset] > 1)
            problem("block %llu is in flight twice", refs[b].offset);
        place = start + header.size;
      }
      if (place != write.index && !(place == ring.capacity && write.index == 0))
        problem("channel %llu: ring %llu ends at %llu", index, at, place);
      at = A::load_acquire(ring.header->next);
    }
    if (!saw_tail) problem("channel %llu: the sender's ring is not in the chain", index);
    const auto pending = static_cast<std::uint32_t>(A::load_acquire(row.sender.items)) -
                         static_cast<std::uint32_t>(A::load_acquire(row.receiver.items));
    if (pending != items) problem("channel %llu: %llu items, counted %llu", index, items, pending);
    if (row.sender.lock.owner() != 0 || row.receiver.lock.owner() != 0)
      problem("channel %llu: an end is locked", index);
  }

  void runs() {
    const std::uint32_t end = s_.committed_pages();
    census_.committed_bytes = std::uint64_t{end} << kPageShift;
    std::map<std::uint32_t, std::uint32_t> free_runs;
    RunState last = RunState::kNone;
    std::uint32_t returned_runs = 0;
    for (std::uint32_t p = 0; p < end;) {
      const Run run = Run::unpack(A::load_acquire(s_.run(p)));
      if (run.length == 0 || run.length > end - p || run.state == RunState::kNone ||
          run.state > RunState::kUnbacked) {
        problem("page %llu: impossible run", p);
        return;
      }
      if (A::load_acquire(s_.page(p + run.length - 1).head_back) != run.length - 1)
        problem("page %llu: its last page does not lead back", p);
      for (std::uint32_t k = 1; exact_ && k < run.length; ++k)
        if (Run::unpack(A::load_acquire(s_.run(p + k))).state == RunState::kSlab)
          problem("page %llu: says it is a slab, within the run at %llu", p + k, p);
      if (run.state == last && (last == RunState::kFree || last == RunState::kReturned))
        problem("page %llu: two free runs touch", p);
      if (run.state == RunState::kFree) {
        free_runs[p] = run.length;
        census_.free_bytes += std::uint64_t{run.length} << kPageShift;
      } else if (run.state == RunState::kReturned) {
        ++returned_runs;
        census_.returned_bytes += std::uint64_t{run.length} << kPageShift;
      } else if (run.state == RunState::kReserved || run.state == RunState::kUnbacked) {
        ++census_.reserved_runs;
        census_.reserved_bytes += std::uint64_t{run.length} << kPageShift;
        if (!is_seated(run.token)) problem("page %llu: reserved by nobody", p);
      } else {
        slab(p, run);
      }
      last = run.state;
      p += run.length;
    }
    if (exact_) index(free_runs);
    if (exact_) returned(returned_runs);
  }

  void index(const std::map<std::uint32_t, std::uint32_t>& free_runs) {
    if (s_.header().heap_lock.owner() != 0) {
      problem("the heap is locked");
      return;
    }
    const std::uint32_t n = A::load_acquire(s_.header().index_size);
    if (n != free_runs.size()) {
      problem("%llu free runs, %llu in the index", free_runs.size(), n);
      return;
    }
    for (std::uint32_t i = 0; i < n; ++i) {
      const auto it = free_runs.find(s_.run_index()[i]);
      if (it == free_runs.end()) {
        problem("index %llu: page %llu is no free run", i, s_.run_index()[i]);
        continue;
      }
      if (s_.page(it->first).index_pos != i) problem("index %llu: no way back", i);
      if (i > 0 && free_runs.count(s_.run_index()[(i - 1) / 2]) != 0 &&
          free_runs.at(s_.run_index()[(i - 1) / 2]) < it->second)
        problem("index %llu: longer than its parent", i);
    }
    if (n > 0) {
      const auto top = free_runs.find(s_.run_index()[0]);
      if (top != free_runs.end()) census_.largest_free = std::uint64_t{top->second} << kPageShift;
    }
  }

  void returned(std::uint32_t runs) {
    const std::uint32_t end = s_.committed_pages();
    std::uint32_t before = 0;
    std::uint64_t bytes = 0;
    std::uint32_t at = A::load_acquire(s_.header().returned_first);
    for (; at != 0 && at <= end && runs > 0; --runs) {
      const Run run = Run::unpack(A::load_acquire(s_.run(at - 1)));
      if (run.state != RunState::kReturned) problem("page %llu: listed, not returned", at - 1);
      if (s_.page(at - 1).index_pos != before) problem("page %llu: no way back", at - 1);
      bytes += std::uint64_t{run.length} << kPageShift;
      before = at;
      at = s_.page(at - 1).next_returned;
    }
    if (at != 0 || runs != 0 || bytes != census_.returned_bytes)
      problem("the list of returned runs is another one: %llu left", runs);
  }

  void slab(std::uint32_t head, const Run& run) {
    ++census_.slabs;
    if (run.token == 0) ++census_.orphan_slabs;
    if (run.token != 0 && !is_seated(run.token)) problem("slab %llu: owner is gone", head);
    BlockPlace p{};
    if (!s_.place(s_.page_offset(head), p)) {
      problem("slab %llu: impossible", head);
      return;
    }
    const std::uint64_t bytes = std::uint64_t{run.length} << kPageShift;
    SizeClassCensus& size = census_.by_size[static_cast<std::uint32_t>(p.size())];
    ++size.slabs;
    census_.slab_bytes += bytes;
    census_.overhead_bytes += bytes - p.count * p.size();
    std::uint32_t used = 0;
    for (std::uint32_t i = 0; i < p.count; ++i) {
      BlockPlace b{};
      Holder holder{};
      if (!s_.place(p.offset + i * p.size(), b) || !read_holder(s_, b, holder)) {
        problem("slab %llu block %llu: header overwritten", head, i);
        continue;
      }
      if (holder.kind == HolderKind::kFree) {
        ++census_.free_blocks;
        ++size.free_blocks;
        census_.free_block_bytes += p.size();
        if (flights_.contains(b.offset)) problem("block %llu: free and in flight", b.offset);
        continue;
      }
      ++used;
      ++size.used_blocks;
      block(b, holder);
      if (is_ticket(s_, b.offset)) ticket(b.offset);
    }
    if (used == 0 && run.token == 0) problem("slab %llu: empty and ownerless", head);
  }

  void block(const BlockPlace& b, const Holder& holder) {
    const std::uint64_t room = b.size() - sizeof(BlockHeader);
    const std::uint64_t length = std::min(room, A::load_acquire(s_.block(b.offset).length));
    census_.used_bytes += length;
    census_.waste_bytes += room - length;
    census_.overhead_bytes += sizeof(BlockHeader);
    switch (holder.kind) {
      case HolderKind::kFree:
        break;
      case HolderKind::kProcess:
        if (reached_.blocks.contains(b.offset)) {
          ++census_.flight_blocks;
          census_.flight_bytes += length;
          break;
        }
        ++census_.process_blocks;
        if (const std::uint64_t lease = A::load_acquire(s_.block(b.offset).lease);
            lease != 0 && Lease::unpack(lease).taken)
          ++census_.leased_blocks;
        census_.process_bytes += length;
        ++census_.holders[holder.id].blocks;
        census_.holders[holder.id].bytes += length;
        if (!is_seated(holder.id)) problem("block %llu: leaked by %llu", b.offset, holder.id);
        if (!may_hold(b, holder.id)) problem("block %llu: holder not in slot set", b.offset);
        break;
      case HolderKind::kChannel: {
        if (A::load_acquire(s_.block(b.offset).lease) != 0) {
          returned(b, holder);
          break;
        }
        ++census_.ring_blocks;
        census_.ring_bytes += length;
        if (index_of(holder.id) >= s_.constants().max_channels) {
          problem("ring %llu: its channel %llu is none", b.offset, holder.id);
          break;
        }
        const ChannelWord word =
            ChannelWord::unpack(A::load_acquire(s_.channel(index_of(holder.id)).state));
        const bool half =
            word.state == ChannelState::kClaimed || word.state == ChannelState::kDestroying;
        if (!half && !reached_.rings.contains(b.offset))
          problem("ring %llu: its channel does not reach it", b.offset);
        break;
      }
      case HolderKind::kEntry: {
        ++census_.shared_blocks;
        census_.shared_bytes += length;
        if (index_of(holder.id) >= s_.constants().max_entries) {
          problem("block %llu: its entry %llu is none", b.offset, holder.id);
          break;
        }
        const EntryWord word =
            EntryWord::unpack(A::load_acquire(s_.entry(index_of(holder.id)).state));
        if (word.state != EntryState::kActive || word.value * kCacheLine != b.offset ||
            word.generation != generation_of_id(holder.id))
          problem("block %llu: its entry is another's", b.offset);
        break;
      }
    }
  }

  void returned(const BlockPlace& b, const Holder& holder) {
    ++census_.returned_blocks;
    ++census_.messages;
    const Lease lease = Lease::unpack(A::load_acquire(s_.block(b.offset).lease));
    if (lease.channel != holder.id || !lease.taken)
      problem("block %llu: handed back to a channel that is not its own", b.offset);
    if (index_of(holder.id) >= s_.constants().max_channels) return;
    ChannelRow& row = s_.channel(index_of(holder.id));
    const ChannelWord word = ChannelWord::unpack(A::load_acquire(row.state));
    if (word.state == ChannelState::kFree || word.generation != generation_of_id(holder.id) ||
        (row.flags & kLeased) == 0)
      problem("block %llu: handed back to a channel that is gone", b.offset);
    if (word.state == ChannelState::kActive && A::load_acquire(row.returned) == 0)
      problem("block %llu: handed back and forgotten", b.offset);
  }

  /// T1: a ticket has its cell, unless its maker is still about it.
  void ticket(std::uint64_t at) {
    ++census_.tickets;
    if (!exact_) return;
    const auto id = static_cast<std::uint32_t>(A::load_acquire(s_.block(at).ticket));
    if (index_of(id) >= s_.entries_high()) {
      problem("ticket %llu: no such entry", at);
      return;
    }
    SharedEntry& entry = s_.entry(index_of(id));
    const EntryWord word = EntryWord::unpack(A::load_acquire(entry.state));
    if (word.state != EntryState::kActive || word.generation != generation_of_id(id) ||
        !has_hold(s_, entry.holds, HoldKind::kTicket, static_cast<std::uint32_t>(at / kCacheLine)))
      problem("ticket %llu: its entry does not know it", at);
  }

  /// T1: every cell of a ticket has a ticket.
  void cells(std::uint32_t index, std::uint32_t id) {
    HoldList* part = &s_.entry(index).holds;
    bool any = false;
    for (std::uint32_t steps = 0; steps <= s_.constants().max_entries; ++steps) {
      for (auto& cell : part->cells) {
        const Hold hold = Hold::unpack(A::load_acquire(cell));
        any = any || hold.count != 0;
        if (hold.kind != HoldKind::kTicket || hold.count == 0) continue;
        BlockPlace p{};
        Holder holder{};
        if (!s_.place(std::uint64_t{hold.id} * kCacheLine, p) || !read_holder(s_, p, holder) ||
            holder.kind == HolderKind::kFree ||
            A::load_acquire(s_.block(p.offset).ticket) != (1ULL << 32 | id))
          problem("entry %llu: no ticket at %llu", index, std::uint64_t{hold.id} * kCacheLine);
      }
      const std::uint64_t next = A::load_acquire(part->next);
      if (next == 0 || next > s_.constants().max_entries) break;
      part = &s_.entry(static_cast<std::uint32_t>(next - 1)).holds;
    }
    if (!any) problem("entry %llu: nobody holds it", index);
  }

  bool may_hold(const BlockPlace& b, Token token) {
    return (A::load_acquire(s_.page(b.head).slot_set) & slot_bit(token)) != 0;
  }

  void entries() {
    const std::uint32_t high = s_.entries_high();
    for (std::uint32_t i = 0; i < high; ++i) {
      const EntryWord word = EntryWord::unpack(A::load_acquire(s_.entry(i).state));
      if (word.state != EntryState::kFree) ++census_.entries;
      if (word.state != EntryState::kActive) continue;
      BlockPlace p{};
      Holder holder{};
      if (!s_.place(word.value * kCacheLine, p) || !read_holder(s_, p, holder) ||
          holder != by_entry(make_id(i, word.generation)))
        problem("entry %llu: its block is not shared through it", i);
      if (exact_) cells(i, make_id(i, word.generation));
    }
  }

  Segment& s_;
  const bool exact_;
  Census census_;
  Reached reached_;
  std::unordered_map<std::uint64_t, std::uint32_t> flights_;
};

}  // namespace

Census take_census(Segment& s, bool exact) { return Walk(s, exact).run(); }

}  // namespace ipcbuf
