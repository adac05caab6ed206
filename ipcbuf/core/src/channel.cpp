// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// Making, opening and ending channels; what recovery does for them. The traffic is in
// endpoint.cpp.
#include "ipcbuf/channel.hpp"

#include <algorithm>
#include <initializer_list>

#include "ipcbuf/block.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/static_area.hpp"
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

namespace {

/// True if the row was free and is ours now.
bool try_claim_row(Segment& s, std::uint32_t i, std::uint32_t& id) noexcept {
  ChannelRow& row = s.channel(i);
  std::uint64_t word = A::load_acquire(row.state);
  const ChannelWord old = ChannelWord::unpack(word);
  if (old.state != ChannelState::kFree) return false;
  if (!A::compare_exchange(row.state, word,
                           ChannelWord{ChannelState::kClaimed, old.generation, s.token()}.pack()))
    return false;
  id = make_id(i, old.generation);
  return true;
}

/// A free row. The one freed last is tried first. Used rows are searched only while about one in
/// eight of them is free, so a search takes eight looks on average however many channels there
/// are, and the table stays at most an eighth longer than needed.
Status claim_row(Segment& s, std::uint32_t& id, Failure& why) noexcept {
  Header& h = s.header();
  const std::uint32_t n = s.constants().max_channels;
  const std::uint32_t used = s.channels_high();
  const std::uint32_t hint = A::load_relaxed(h.channel_hint);  // relaxed: never trusted
  const auto found = [&](std::uint32_t i) {
    A::store_relaxed(h.channel_hint, i + 1);
    std::uint32_t free = A::load_relaxed(h.channels_free);  // relaxed: about right is enough
    while (free != 0 && !A::compare_exchange(h.channels_free, free, free - 1)) {
    }
    return Status::kOk;
  };
  if (hint < used && try_claim_row(s, hint, id)) return found(hint);
  const std::uint32_t free = A::load_relaxed(h.channels_free);
  if (used != 0 && (free > used / 8 || used == n)) {
    for (std::uint32_t k = 0; k < used; ++k) {
      const std::uint32_t i = (hint % used + k) % used;
      if (try_claim_row(s, i, id)) return found(i);
    }
    A::store_relaxed(h.channels_free, 0);  // who died between a row and its count
  }
  for (std::uint32_t i = used; i < n; ++i) {
    constexpr std::uint64_t kChunk = 4096;  // begins with a row; rows lie in order
    const std::uint64_t at = s.constants().channels + std::uint64_t{i} * sizeof(ChannelRow);
    std::uint32_t high = A::load_acquire(h.channels_high);
    if (i >= high) {
      // The row in front was used, so the chunk it shares with us is reserved.
      if (const int error =
              i == high && at % kChunk != 0 ? 0 : s.reserve(at / kChunk * kChunk, kChunk);
          error != 0)
        return RunHeap(s).refuse(error, kChunk, why);
      while (high <= i && !A::compare_exchange(h.channels_high, high, i + 1)) {
      }
    }
    if (try_claim_row(s, i, id)) {
      A::store_relaxed(h.channel_hint, i + 1);
      return Status::kOk;
    }
  }
  why = {Status::kTooMany, 0, "channels"};
  why.requested = n;
  return why.status;
}

}  // namespace

Status draft_channel(Segment& s, const ChannelOptions& options, std::uint32_t& id, Failure& why) {
  if (const Status status = claim_row(s, id, why); status != Status::kOk) return status;
  ChannelRow& row = s.channel(index_of(id));
  row.flags = (options.shared || options.lease ? kSharedEnds : 0) | (options.lease ? kLeased : 0);
  row.bell_kind = options.bell;
  row.type = options.type;
  row.key = {};
  A::store_relaxed(row.max_items, options.max_items);
  A::store_relaxed(row.max_bytes, options.max_bytes);
  A::store_relaxed(row.returned, 0);
  A::store_relaxed(row.give_backs, 0);
  A::store_relaxed(row.value, 0);
  A::store_relaxed(row.ready, 0);
  A::store_relaxed(row.marks, 0);
  for (EndRow* end : {&row.sender, &row.receiver}) {
    end->lock.reset();
    A::store_relaxed(end->owner, 0);
    A::store_relaxed(end->ring, 0);
    A::store_relaxed(end->items, 0);
    A::store_relaxed(end->bytes, 0);
    A::store_relaxed(end->cached, 0);
    A::store_relaxed(end->last_pid, 0);
    A::store_relaxed(end->left_at, 0);
    A::store_relaxed(end->spinner, 0);
    A::store_relaxed(end->spin_until, 0);
  }
  for (BellRow* bell : {&row.data, &row.room}) {
    A::store_relaxed(bell->word, 0);
    A::store_relaxed(bell->end_state, static_cast<std::uint32_t>(EndState::kOpen));
    A::store_relaxed(bell->sleeper, 0);
    A::store_relaxed(bell->sleeps_since, 0);
  }
  for (HoldList* list : {&row.sender_holds, &row.receiver_holds}) {
    A::store_relaxed(list->next, 0);
    for (auto& cell : list->cells) A::store_relaxed(cell, 0);
  }
  if (options.type != ChannelType::kRecord) return Status::kOk;
  std::uint64_t ring = 0;
  if (const Status status = make_ring(s, id, kMinRing, ring, why); status != Status::kOk) {
    why.status = status;
    destroy_channel(s, index_of(id));
    return status;
  }
  give_ring(s, ring, id);
  A::store_release(row.receiver.ring, ring);  // reached from here on
  A::store_release(row.sender.ring, ring);
  return Status::kOk;
}

void activate_channel(Segment& s, std::uint32_t id) noexcept {
  A::store_release(s.channel(index_of(id)).state,
                   ChannelWord{ChannelState::kActive, generation_of_id(id), 0}.pack());
}

Status create_channel(Segment& s, const ChannelOptions& options, std::uint32_t& id, Failure& why) {
  Status status = draft_channel(s, options, id, why);
  if (status != Status::kOk) return status;
  status = s.add_endpoint(id, End::kSender);
  if (status == Status::kOk) status = s.add_endpoint(id, End::kReceiver);
  if (status != Status::kOk) {
    why.status = status;
    destroy_channel(s, index_of(id));
    return status;
  }
  activate_channel(s, id);
  return Status::kOk;
}

Status open_channel(Segment& s, std::uint32_t id, End end, Token transit, ChannelType type) {
  const std::uint32_t index = index_of(id);
  if (index >= s.channels_high()) return Status::kNotFound;
  ChannelRow& row = s.channel(index);
  HoldList& holds = hold_list(s, id, end);
  SpareEntry spare(s);
  Status status = Status::kFull;
  while (status == Status::kFull) {
    {
      const DirectoryLock lock(s, platform::kForever);
      const ChannelWord word = ChannelWord::unpack(A::load_acquire(row.state));
      if (word.state != ChannelState::kActive || word.generation != generation_of_id(id) ||
          row.type != type)
        return Status::kNotFound;
      // H1: what held the end for us went with its dead. Only a key lets it be joined again.
      if ((A::load_acquire(row.marks) & kKeyed) == 0 && is_unheld(s, holds))
        return Status::kNotFound;
      status = try_add_hold(s, holds, Hold{HoldKind::kProcess, s.token(), 1}, spare);
      if (status == Status::kOk) reopen_end(s, row, end);
    }
    if (status != Status::kFull) break;
    status = spare.make_room(holds);
    if (status == Status::kOk) status = Status::kFull;
  }
  if (status != Status::kOk) return status;
  s.note_endpoint(id, end);
  if (transit != 0) drop_hold(s, holds, HoldKind::kTransit, transit, false);
  return Status::kOk;
}

Status hold_in_transit(Segment& s, std::uint32_t id, End end, Token parcels) {
  const Token token = parcels != 0 ? parcels : s.token();
  return add_hold(s, hold_list(s, id, end), Hold{HoldKind::kTransit, token, 1});
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
  const std::uint64_t word = A::load_acquire(row.state);
  const ChannelWord state = ChannelWord::unpack(word);
  if (state.state != ChannelState::kActive || s.token() == 0) return;
  constexpr auto kOpen = static_cast<std::uint32_t>(EndState::kOpen);
  // A look without the lock, so that the reaper may come by every channel.
  const bool looks[2] = {is_unheld(s, row.sender_holds), is_unheld(s, row.receiver_holds)};
  if (!(looks[0] && looks[1]) && !(looks[0] && A::load_acquire(row.sender_state()) == kOpen) &&
      !(looks[1] && A::load_acquire(row.receiver_state()) == kOpen))
    return;
  bool is_last = false;
  {
    const DirectoryLock lock(s, platform::kForever);
    if (A::load_acquire(row.state) != word) return;  // somebody was faster
    bool unheld[2] = {};
    for (const End end : {End::kSender, End::kReceiver}) {
      const auto e = static_cast<std::size_t>(end);
      auto& end_state = end == End::kSender ? row.sender_state() : row.receiver_state();
      unheld[e] = is_unheld(s, end == End::kSender ? row.sender_holds : row.receiver_holds);
      std::uint32_t open = kOpen;
      if (unheld[e] && A::compare_exchange(end_state, open,
                                           static_cast<std::uint32_t>(EndState::kClosed)))  // C4
        wake_channel(s, row);
    }
    if (unheld[0] && unheld[1]) {
      is_last = true;
      A::store_release(row.state,
                       ChannelWord{ChannelState::kDestroying, state.generation, s.token()}.pack());
      forget_key(s, index);
    }
  }
  if (is_last) destroy_channel(s, index);
}

void destroy_channel(Segment& s, std::uint32_t index) {
  ChannelRow& row = s.channel(index);
  const std::uint32_t id = channel_id(index, row);
  if (row.type == ChannelType::kStatic) give_back_area(s, row, id);
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
  A::fetch_add(s.header().channels_free, 1);
  A::store_relaxed(s.header().channel_hint, index);  // relaxed: never trusted
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
        if (row.type != ChannelType::kRecord) return;  // an init function's: nothing to mend
        end == End::kSender ? recover_sender(s, row, id) : recover_receiver(s, row, id);
      });
  if (held) side.lock.release();
}

}  // namespace ipcbuf
