// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// Making, opening and ending channels; what recovery does for them. The traffic is in
// endpoint.cpp.
#include "ipcbuf/channel.hpp"

#include <algorithm>

#include "ipcbuf/block.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace ipcbuf {

using A = Atomics;

std::uint32_t channel_id(std::uint32_t index, ChannelRow& row) noexcept {
  return make_id(index, ChannelWord::unpack(A::load_acquire(row.state)).generation);
}

bool open_ring(Segment& s, std::uint64_t offset, std::uint32_t id, Ring<>& out) noexcept {
  BlockPlace p{};
  Holder holder{};
  if (!s.place(offset, p) || !read_holder(s, p, holder) || holder != by_channel(id)) return false;
  auto* header = reinterpret_cast<RingHeader*>(s.payload(offset));
  const std::uint32_t capacity = header->capacity;
  if (capacity < kMinRing || capacity % 16 != 0 || capacity + kRingOverhead > p.size())
    return false;
  out.header = header;
  out.data = s.payload(offset) + sizeof(RingHeader);
  out.capacity = capacity;
  return true;
}

Status make_ring(Segment& s, std::uint32_t id, std::uint32_t capacity, std::uint64_t& offset,
                 Failure& why) {
  const Status status =
      ThreadHeap::of(s).allocate(sizeof(RingHeader) + std::uint64_t{capacity}, offset, why);
  if (status != Status::kOk) return status;
  auto* ring = reinterpret_cast<RingHeader*>(s.payload(offset));
  ring->capacity = capacity;
  ring->channel = id;
  ring->items_base = 0;
  ring->bytes_base = 0;
  A::store_relaxed(ring->next, 0);
  A::store_relaxed(ring->write_word, 0);
  A::store_relaxed(ring->read_word, 0);
  return Status::kOk;
}

void give_ring(Segment& s, std::uint64_t offset, std::uint32_t id) noexcept {
  BlockPlace p{};
  if (!s.place(offset, p)) return;
  A::store_relaxed(s.block(offset).creator, s.token());  // relaxed: K2 carries it
  store_holder(s, p, by_channel(id));
}

Status create_channel(Segment& s, const ChannelOptions& options, std::uint32_t& id, Failure& why) {
  const std::uint32_t n = s.constants().max_channels;
  const std::uint32_t hint = A::load_relaxed(s.header().channel_hint);  // relaxed: never trusted
  std::uint32_t index = n;
  std::uint32_t generation = 0;
  for (std::uint32_t k = 0; k < n && index == n; ++k) {
    const std::uint32_t i = (hint + k) % n;
    ChannelRow& row = s.channel(i);
    std::uint32_t high = A::load_acquire(s.header().channels_high);
    if (i >= high) {
      constexpr std::uint64_t kChunk = 4096;
      const std::uint64_t at = s.constants().channels + std::uint64_t{i} * sizeof(ChannelRow);
      if (const int error = s.reserve(at / kChunk * kChunk, kChunk); error != 0) {
        why = {s.is_lost() ? Status::kLost : Status::kExhausted, -error, "fallocate"};
        return why.status;
      }
      while (high <= i && !A::compare_exchange(s.header().channels_high, high, i + 1)) {
      }
    }
    std::uint64_t word = A::load_acquire(row.state);
    const ChannelWord old = ChannelWord::unpack(word);
    if (old.state != ChannelState::kFree) continue;
    generation = old.generation;
    if (A::compare_exchange(row.state, word,
                            ChannelWord{ChannelState::kClaimed, generation, s.token()}.pack()))
      index = i;
  }
  if (index == n) {
    why = {Status::kTooMany, 0, "channels"};
    why.requested = n;
    return why.status;
  }
  A::store_relaxed(s.header().channel_hint, (index + 1) % n);
  id = make_id(index, generation);
  ChannelRow& row = s.channel(index);
  row.flags = (options.shared || options.lease ? kSharedEnds : 0) | (options.lease ? kLeased : 0);
  row.bell_kind = options.bell;
  row.max_items = options.max_items;
  row.max_bytes = options.max_bytes;
  row.type = ChannelType::kRecord;
  row.key = {};
  A::store_relaxed(row.returned, 0);
  A::store_relaxed(row.give_backs, 0);
  A::store_relaxed(row.value, 0);
  A::store_relaxed(row.ready, 0);
  for (EndRow* end : {&row.sender, &row.receiver}) {
    end->lock.reset();
    A::store_relaxed(end->owner, 0);
    A::store_relaxed(end->state, static_cast<std::uint32_t>(EndState::kOpen));
    A::store_relaxed(end->ring, 0);
    A::store_relaxed(end->items, 0);
    A::store_relaxed(end->bytes, 0);
    A::store_relaxed(end->cached, 0);
    A::store_relaxed(end->last_pid, 0);
    A::store_relaxed(end->left_at, 0);
  }
  for (BellRow* bell : {&row.data, &row.room}) {
    A::store_relaxed(bell->word, 0);
    A::store_relaxed(bell->spinner, 0);
    A::store_relaxed(bell->spin_until, 0);
    A::store_relaxed(bell->sleeper, 0);
    A::store_relaxed(bell->sleeps_since, 0);
  }
  for (HoldList* list : {&row.sender_holds, &row.receiver_holds}) {
    A::store_relaxed(list->next, 0);
    for (auto& cell : list->cells) A::store_relaxed(cell, 0);
  }
  std::uint64_t ring = 0;
  Status status = make_ring(s, id, kMinRing, ring, why);
  if (status == Status::kOk) {
    give_ring(s, ring, id);
    A::store_release(row.receiver.ring, ring);  // reached from here on
    A::store_release(row.sender.ring, ring);
    status = s.add_endpoint(id, End::kSender);
    if (status == Status::kOk) status = s.add_endpoint(id, End::kReceiver);
  }
  if (status != Status::kOk) {
    why.status = status;
    destroy_channel(s, index);
    return status;
  }
  A::store_release(row.state, ChannelWord{ChannelState::kActive, generation, 0}.pack());
  return Status::kOk;
}

Status open_channel(Segment& s, std::uint32_t id, End end, Token transit) {
  const std::uint32_t index = index_of(id);
  if (index >= s.channels_high()) return Status::kNotFound;
  const ChannelWord word = ChannelWord::unpack(A::load_acquire(s.channel(index).state));
  if (word.state != ChannelState::kActive || word.generation != generation_of_id(id))
    return Status::kNotFound;
  const Status status = s.add_endpoint(id, end);
  if (status != Status::kOk) return status;
  // H1: the hold in transit may have gone with its dead while we added ours. If nobody else holds
  // the end, it is being closed or belongs to another channel by now.
  HoldList& holds = hold_list(s, id, end);
  const ChannelWord now = ChannelWord::unpack(A::load_acquire(s.channel(index).state));
  if (!is_held_by_others(s, holds, s.token()) || now.state != ChannelState::kActive ||
      now.generation != word.generation) {
    s.remove_endpoint(id, end);
    return Status::kNotFound;
  }
  if (transit != 0) drop_hold(s, holds, HoldKind::kTransit, transit, false);
  return status;
}

Status hold_in_transit(Segment& s, std::uint32_t id, End end) {
  return add_hold(s, hold_list(s, id, end), Hold{HoldKind::kTransit, s.token(), 1});
}

void wake_channel(Segment& s, ChannelRow& row) noexcept {
  Doorbell<>(row.data, s.asymmetric()).wake_all();
  Doorbell<>(row.room, s.asymmetric()).wake_all();
}

void drop_endpoint_hold(Segment& s, std::uint32_t id, End end, HoldKind kind, Token token) {
  if (drop_hold(s, hold_list(s, id, end), kind, token, false)) settle_channel(s, index_of(id));
}

void settle_channel(Segment& s, std::uint32_t index) {
  ChannelRow& row = s.channel(index);
  std::uint64_t word = A::load_acquire(row.state);
  const ChannelWord state = ChannelWord::unpack(word);
  if (state.state != ChannelState::kActive) return;
  bool unheld[2] = {};
  for (const End end : {End::kSender, End::kReceiver}) {
    const auto e = static_cast<std::size_t>(end);
    EndRow& side = end == End::kSender ? row.sender : row.receiver;
    unheld[e] = is_unheld(s, end == End::kSender ? row.sender_holds : row.receiver_holds);
    auto open = static_cast<std::uint32_t>(EndState::kOpen);
    if (unheld[e] && A::compare_exchange(side.state, open,
                                         static_cast<std::uint32_t>(EndState::kClosed)))  // C4
      wake_channel(s, row);
  }
  if (unheld[0] && unheld[1] &&
      A::compare_exchange(
          row.state, word,
          ChannelWord{ChannelState::kDestroying, state.generation, s.token()}.pack()))
    destroy_channel(s, index);
}

void destroy_channel(Segment& s, std::uint32_t index) {
  ChannelRow& row = s.channel(index);
  const std::uint32_t id = channel_id(index, row);
  // As a receiver would: every step leaves a channel that another destroyer can go on with.
  for (std::uint64_t at = A::load_acquire(row.receiver.ring); at != 0;
       at = A::load_acquire(row.receiver.ring)) {
    Ring<> ring;
    if (!open_ring(s, at, id, ring)) {
      (void)s.poison(__LINE__);
      return;
    }
    Atomic<std::uint64_t> seen{A::load_acquire(ring.header->write_word)};
    RingReader<> reader(ring, seen);
    RecordHeader header{};
    std::uint64_t cumulative = 0;
    const std::byte* body = nullptr;
    Front front = is_possible(ring, reader.position(), RingWord::unpack(A::load_relaxed(seen)))
                      ? Front::kRecord
                      : Front::kCorrupted;
    while (front == Front::kRecord &&
           (front = reader.front(header, cumulative, body)) == Front::kRecord) {
      std::uint64_t held[kMaxBlocks];
      const auto* refs = reinterpret_cast<const BlockRef*>(body);
      std::uint32_t n = 0;
      for (; n < header.blocks; ++n) {
        BlockPlace p{};
        if (!s.place(refs[n].offset, p)) break;
        note_slot(s, p);
        store_holder(s, p, by_process(s.token()));  // D5
        held[n] = refs[n].offset;
      }
      reader.pop(header);
      while (n-- > 0) (void)free_block(s, held[n]);
    }
    if (front == Front::kCorrupted) {
      (void)s.poison(__LINE__);
      return;
    }
    BlockPlace p{};
    if (!s.place(at, p)) return;
    note_slot(s, p);
    A::store_release(s.block(at).creator, s.token());                         // C2
    A::store_release(row.receiver.ring, A::load_acquire(ring.header->next));  // C2, the commit
    (void)free_block(s, at, by_channel(id));
  }
  A::store_release(row.sender.ring, 0);
  if ((row.flags & kLeased) != 0) free_returned(s, id);
  for (HoldList* list : {&row.sender_holds, &row.receiver_holds}) {
    adopt_chain(s, *list);
    const std::uint64_t chain = A::load_acquire(list->next);
    A::store_release(list->next, 0);
    release_chain(s, chain);
    for (auto& cell : list->cells) A::store_relaxed(cell, 0);
  }
  const ChannelWord state = ChannelWord::unpack(A::load_acquire(row.state));
  A::store_release(row.state,
                   ChannelWord{ChannelState::kFree, (state.generation + 1) & 0xFFF, 0}.pack());
}

// ---- after the death of who was inside an end ----

void recover_sender(Segment& s, ChannelRow& row, std::uint32_t id) noexcept {
  // The chain from the receiver's side is the truth: the dead may have linked a ring and not
  // moved to it, and the receiver may have freed the ring the dead was in.
  std::uint64_t at = 0;
  Ring<> ring;
  std::uint32_t steps = 0;
  for (std::uint32_t tries = 0; tries < 1000; ++tries) {
    at = A::load_acquire(row.receiver.ring);
    bool reached = open_ring(s, at, id, ring);
    while (reached && steps++ < s.constants().max_pages) {
      const std::uint64_t next = A::load_acquire(ring.header->next);
      if (next == 0) break;
      at = next;
      reached = open_ring(s, at, id, ring);
    }
    if (reached) break;
    at = 0;  // the receiver moved on under us
  }
  if (at == 0) {
    (void)s.poison(__LINE__);
    return;
  }
  A::store_relaxed(row.sender.cached, A::load_acquire(ring.header->read_word));
  A::store_release(row.sender.ring, at);
  const RingWord write = RingWord::unpack(A::load_acquire(ring.header->write_word));
  A::store_release(row.sender.items,
                   static_cast<std::uint32_t>(ring.header->items_base + write.items));
  // Bytes: behind the last record that is still there, else what the receiver has seen.
  std::uint64_t bytes = ring.header->bytes_base;
  RingWord read = RingWord::unpack(A::load_acquire(ring.header->read_word));
  if (write.items != 0) bytes = std::max(bytes, A::load_acquire(row.receiver.bytes));
  std::uint32_t at_index = read.index;
  for (std::uint32_t n = write.items - read.items; n > 0 && n <= ring.capacity / 16; --n) {
    RecordHeader header{};
    std::uint32_t start = 0;
    if (!parse_record(ring, at_index, header, start)) break;  // read meanwhile
    bytes = A::load_relaxed(ring.word_at(start + 8));
    at_index = start + header.size;
  }
  A::store_release(row.sender.bytes, bytes);
}

void recover_receiver(Segment& s, ChannelRow& row, std::uint32_t id) noexcept {
  Ring<> ring;
  if (!open_ring(s, A::load_acquire(row.receiver.ring), id, ring)) {
    (void)s.poison(__LINE__);
    return;
  }
  const RingWord read = RingWord::unpack(A::load_acquire(ring.header->read_word));
  A::store_relaxed(row.receiver.cached, A::load_acquire(ring.header->write_word));
  A::store_release(row.receiver.items,
                   static_cast<std::uint32_t>(ring.header->items_base + read.items));
  // Bytes: in front of the oldest record; if there is none, all that was sent.
  const RingWord write = RingWord::unpack(A::load_acquire(ring.header->write_word));
  RecordHeader header{};
  std::uint32_t start = 0;
  if (write.items == read.items) {
    A::store_release(row.receiver.bytes, A::load_acquire(row.sender.bytes));
  } else if (parse_record(ring, read.index, header, start)) {
    std::uint64_t weight = header.size;
    const auto* refs = reinterpret_cast<const BlockRef*>(ring.data + start + kRecordHeader);
    for (std::uint32_t i = 0; i < header.blocks; ++i) weight += refs[i].length;
    A::store_release(row.receiver.bytes, A::load_relaxed(ring.word_at(start + 8)) - weight);
  }
}

void recover_end_lock(Segment& s, std::uint32_t index, End end) noexcept {
  ChannelRow& row = s.channel(index);
  EndRow& side = end == End::kSender ? row.sender : row.receiver;
  const Token owner = side.lock.owner();
  if (owner == 0 || !s.is_dead(owner)) return;
  const std::uint32_t id = channel_id(index, row);
  const bool held = side.lock.acquire(
      s.token(), platform::kForever, [&](Token t) { return s.is_dead(t); },
      [&] {
        A::fetch_add(s.header().takeovers, 1);
        end == End::kSender ? recover_sender(s, row, id) : recover_receiver(s, row, id);
      });
  if (held) side.lock.release();
}

}  // namespace ipcbuf
