// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// The traffic of a channel: one message in, one message out, and waiting for either.
#include <algorithm>
#include <cstring>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/bridge.hpp"
#include "ipcbuf/channel.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/thread_heap.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::int64_t kShortSlice = 20'000'000;
constexpr std::int64_t kLongSlice = 200'000'000;
constexpr std::int64_t kFirstSecond = 1'000'000'000;
constexpr std::int64_t kMaxSpin = 60'000;  // ns: about what waking a sleeper costs
constexpr std::int64_t kMinSpin = 2'000;
constexpr std::uint32_t kSpinRetry = 32;  // waits without spinning before it is tried again
constexpr std::uint32_t kLargestRing = (1U << 20) - kRingOverhead;

}  // namespace

std::int64_t slice_ns(std::int64_t waited_ns) noexcept {
  return waited_ns < kFirstSecond ? kShortSlice : kLongSlice;
}

void mark_sleeper(BellRow& bell, Token me, std::int64_t since_ns) noexcept {
  // relaxed: for people, who may see one without the other
  A::store_relaxed(bell.sleeps_since, static_cast<std::uint64_t>(since_ns));
  A::store_relaxed(bell.sleeper, me);
}

void unmark_sleeper(BellRow& bell, Token me) noexcept {
  // relaxed: if another goes to sleep in between, its mark comes back with its next slice
  if (A::load_relaxed(bell.sleeper) == me) A::store_relaxed(bell.sleeper, 0);
}

void mark_left(EndRow& end, std::uint32_t pid) noexcept {
  A::store_relaxed(end.left_at, static_cast<std::uint64_t>(platform::monotonic_ns()));
  A::store_relaxed(end.last_pid, pid);  // relaxed: for people
}

// ---- both ends ----

Endpoint::Endpoint(Segment& segment, std::uint32_t id, End end) noexcept
    : s_(segment),
      row_(segment.channel(index_of(id))),
      id_(id),
      end_(end),
      shared_((row_.flags & kSharedEnds) != 0),
      leased_((row_.flags & kLeased) != 0),
      bell_kind_(row_.bell_kind),
      spin_ns_(platform::cpu_count() > 1 ? kMaxSpin : 0) {}

std::uint32_t Endpoint::pending() noexcept {
  const auto received = static_cast<std::uint32_t>(A::load_acquire(row_.receiver.items));
  const auto sent = static_cast<std::uint32_t>(A::load_acquire(row_.sender.items));
  const std::uint32_t n = sent - received;
  const std::uint32_t returned = leased_ ? A::load_acquire(row_.returned) : 0;
  return (n < 1U << 31 ? n : 0) + returned;  // the two were read at different moments
}

Endpoint::~Endpoint() {
  if (watched_) Bridge::forget(*this);
}

bool Endpoint::is_ready() noexcept {
  if (closed_ || hangup_ || s_.is_poisoned()) return true;
  return end_ == End::kSender ? static_cast<SenderEnd*>(this)->may_send()
                              : static_cast<ReceiverEnd*>(this)->may_receive();
}

void Endpoint::list_peers(std::vector<Token>& out) {
  const Token me = s_.token();
  const auto list = [&](HoldList& holds) {
    std::vector<Hold> cells;
    list_holds(s_, holds, s_.constants().max_slots, cells);
    for (const Hold& hold : cells)
      if ((hold.kind == HoldKind::kProcess || hold.kind == HoldKind::kTransit) && hold.id != me)
        out.push_back(hold.id);
  };
  // A receiver beside us that died may have what we wait for.
  if (end_ == End::kReceiver && leased_) list(row_.receiver_holds);
  HoldList& holds = end_ == End::kSender ? row_.receiver_holds : row_.sender_holds;
  if (const Token owner = A::load_acquire(other().owner); owner != 0) {
    if (owner != me) out.push_back(owner);
  } else if (!has_hold(s_, holds, HoldKind::kProcess, me)) {
    list(holds);
  }
}

void Endpoint::lower_alarm() noexcept {
  // relaxed: what the bridge raises meanwhile stays raised, and the next call lowers it
  if (alarmed_.load(std::memory_order_relaxed)) [[unlikely]]
    Bridge::lower(*this);
}

bool Endpoint::is_full() noexcept {
  const std::uint64_t max_items = A::load_relaxed(row_.max_items);  // relaxed: given once
  return max_items != 0 && pending() >= max_items;
}

bool Endpoint::is_gone(const EndRow& side) noexcept {
  const auto state = static_cast<EndState>(A::load_acquire(side.state));
  return state == EndState::kClosed || state == EndState::kDead;
}

Status Endpoint::enter(std::int64_t until_ns) noexcept {
  const Status status = claim(until_ns);
  // E1: `close` stores, then looks whether we are inside; we are inside, then look.
  if (status == Status::kOk && closed_) {
    leave();
    return Status::kClosed;
  }
  return status;
}

Status Endpoint::claim(std::int64_t until_ns) noexcept {
  const Token me = s_.token();
  if (me == 0) return s_.is_lost() ? Status::kLost : Status::kTooMany;
  if (shared_) {
    if (mine().lock.try_acquire(me)) [[likely]]
      return Status::kOk;
    const bool held = mine().lock.acquire(
        me, until_ns, [this](Token t) { return s_.is_dead(t); },
        [this] {
          A::fetch_add(s_.header().takeovers, 1);
          if (end_ == End::kReceiver) {
            recover_receiver(s_, row_, id_);
            return;
          }
          recover_sender(s_, row_, id_);
          if (bell_fd_ >= 0) {
            // The dead may have set the mark and not yet written the byte, or drained half: the
            // mark and one more byte are right in all cases (D4).
            Doorbell<>(row_.data, s_.asymmetric()).set_token();
            (void)platform::write_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
          }
        });
    return held ? Status::kOk : Status::kContended;
  }
  Token inside = inside_.load(std::memory_order_relaxed);
  if (inside == me || !inside_.compare_exchange_strong(inside, me)) return Status::kBusyEnd;
  std::uint32_t owner = 0;
  if (!A::compare_exchange(mine().owner, owner, me) && owner != me) {
    inside_.store(0, std::memory_order_release);
    return Status::kBusyEnd;
  }
  return Status::kOk;
}

void Endpoint::leave() noexcept {
  if (shared_) {
    mine().lock.release();
  } else {
    inside_.store(0, std::memory_order_release);
  }
}

void Endpoint::close() {
  if (closed_.exchange(true)) return;
  if (watched_) Bridge::closed(*this);  // looks behind closed_, as the bridge does the other way
  // E1: another thread of ours may be inside, and without our hold the channel may become
  // another's under it. Nobody waits inside. Who was inside at a fork is not in the child.
  const Token me = s_.token();
  while (me != 0 && (shared_ ? mine().lock.owner() : inside_.load()) == me) platform::cpu_pause();
  if (!shared_ && A::load_acquire(mine().owner) == s_.token()) {
    auto open = static_cast<std::uint32_t>(EndState::kOpen);
    // C4 release, to peer_gone: all that was published is older.
    (void)A::compare_exchange(mine().state, open, static_cast<std::uint32_t>(EndState::kClosed));
    wake_channel(s_, row_);
  }
  if (me != 0) mark_left(mine(), platform::process_id());
  s_.remove_endpoint(id_, end_);
}

void Endpoint::look_for_hangup() noexcept {
  if (bell_kind_ != BellKind::kSocket || bell_fd_ < 0 || hangup_) return;
  platform::FdEvents events;
  if (platform::poll_fd(bell_fd_, 0, events) > 0 && events.hangup) hangup_ = true;
}

Status Endpoint::peer_gone(bool prove) noexcept {
  const auto verdict = [this] {
    switch (static_cast<EndState>(A::load_acquire(other().state))) {  // C4 acquire
      case EndState::kOpen:
      case EndState::kAwaited:
        return hangup_ ? Status::kEnded : Status::kOk;
      case EndState::kClosed:
        return Status::kEnded;
      case EndState::kDead:
        return Status::kBroken;
    }
    return Status::kOk;
  };
  Status gone = verdict();
  if (gone != Status::kOk || !prove) return gone;
  HoldList& holds = end_ == End::kSender ? row_.receiver_holds : row_.sender_holds;
  const Token owner = A::load_acquire(other().owner);
  if (owner != 0) {
    if (s_.is_dead(owner)) reap(s_, owner);
  } else if (!has_hold(s_, holds, HoldKind::kProcess, s_.token())) {
    reap_dead_holders(s_, holds);  // no need to look if we hold the other end ourselves
  }
  return verdict();
}

std::int64_t Endpoint::slice_end(std::int64_t until_ns, Wait& wait) noexcept {
  const std::int64_t now = platform::monotonic_ns();
  if (wait.began == 0) wait.began = now;
  const std::int64_t slice = slice_ns(now - wait.began);
  return until_ns - now < slice ? until_ns : now + slice;
}

/// Spins for about as long as a wake would cost; learns from success. True: `ready`.
template <class Ready>
bool Endpoint::spin(Doorbell<>& bell, std::int64_t until_ns, Ready&& ready) noexcept {
  // Two who have both given up spinning would never find out that it pays again: try the whole
  // budget once in a while.
  const bool trial = spin_ns_ < kMinSpin;
  if (trial) {
    if (platform::cpu_count() < 2 || ++spin_pause_ < kSpinRetry) return false;
    spin_pause_ = 0;
    spin_ns_ = kMaxSpin;
  }
  const std::int64_t begin = platform::monotonic_ns();
  const std::int64_t end = std::min(until_ns, begin + spin_ns_);
  if (!bell.claim_spin(s_.token(), begin, end)) return false;
  bool found = false;
  do {
    for (int i = 0; i < 16 && !found; ++i) {
      found = ready();
      if (!found) platform::cpu_pause();
    }
  } while (!found && platform::monotonic_ns() < end);
  bell.end_spin();
  if (found) {
    spin_ns_ = std::min(kMaxSpin, spin_ns_ * 2);
  } else {
    spin_ns_ = trial ? 0 : spin_ns_ / 2;
  }
  return found;
}

template <class Ready>
void Endpoint::sleep(Doorbell<>& bell, std::int64_t until_ns, Wait& wait, Ready&& ready) noexcept {
  const std::uint32_t word = bell.announce();  // D1
  if (ready()) return;
  wait.slept = true;
  const std::int64_t end = slice_end(until_ns, wait);
  mark_asleep(wait);
  bell.sleep(word, end);
}

void Endpoint::mark_asleep(Wait& wait) noexcept {
  wait.marked = true;
  mark_sleeper(bell_row(), s_.token(), wait.began);
}

void Endpoint::finish_wait(const Wait& wait) noexcept {
  if (wait.marked) unmark_sleeper(bell_row(), s_.token());
  if (!wait.slept) return;
  Doorbell<> bell(bell_row(), s_.asymmetric());
  bell.leave();  // D2
  const bool more = end_ == End::kReceiver ? pending() != 0 : !is_full();
  if (more) bell.wake();
}

// ---- sender ----

bool SenderEnd::has_room(std::uint64_t weight) noexcept {
  if (is_full()) return false;
  const std::uint64_t max_bytes = A::load_relaxed(row_.max_bytes);  // relaxed: given once
  if (max_bytes == 0) return true;
  const std::uint64_t sent = A::load_acquire(row_.sender.bytes);
  const std::uint64_t received = A::load_acquire(row_.receiver.bytes);
  const std::uint64_t inside = sent > received ? sent - received : 0;
  // An empty channel takes one message of any size.
  return inside == 0 || pending() == 0 || inside + weight <= max_bytes;
}

bool SenderEnd::may_send() noexcept {
  return has_room(wanted_.load(std::memory_order_relaxed)) || is_gone(other());
}

/// D3: writes the byte that a polled descriptor needs.
void SenderEnd::ring_bell_entered() noexcept {
  if (bell_kind_ == BellKind::kFutex || bell_fd_ < 0) return;
  Doorbell<> bell(row_.data, s_.asymmetric());
  const std::uint32_t word = bell.look();
  if ((word & kBellToken) != 0) return;
  if (bell_kind_ == BellKind::kEventfd && (word & kBellArmed) == 0) return;
  if (bell_kind_ == BellKind::kEventfd && (word & kBellWaiting) != 0) bell.wake();
  // The mark first: a receiver that is awake already finds it and waits for our lock. Behind a
  // byte without a mark it would turn in circles until we run again.
  bell.set_token();
  (void)platform::write_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
}

Status SenderEnd::send_entered(const Outgoing& m, std::uint64_t& spare_ring,
                               std::uint32_t& wanted) noexcept {
  if (s_.is_poisoned()) return s_.fault();
  if (const Status gone = peer_gone(false); gone != Status::kOk) return Status::kBroken;
  const std::uint64_t weight = m.weight();
  if (!has_room(weight)) return Status::kFull;
  const std::uint64_t tail = A::load_acquire(row_.sender.ring);
  if (tail != ring_offset_ || ring_offset_ == 0 || ring_.header->capacity != ring_.capacity) {
    if (!open_ring(s_, tail, id_, ring_)) return s_.poison(__LINE__);
    ring_offset_ = tail;
  }
  if (leased_ && (m.block_count != 1 || m.payload_size != 0)) return Status::kMismatch;
  const std::uint32_t size = record_size(m.payload_size, m.block_count);
  RingWriter<> writer(ring_, row_.sender.cached);
  std::byte* at = writer.room(size);
  if (at == nullptr) {
    if (spare_ring == 0) {
      // Four times larger, headers included, so that each ring fills whole pages.
      constexpr auto kOverhead = static_cast<std::uint32_t>(kRingOverhead);
      wanted = std::min(kLargestRing, (ring_.capacity + kOverhead) * 4 - kOverhead);
      return Status::kExhausted;  // the caller makes a ring outside the lock and comes again
    }
    auto* next = reinterpret_cast<RingHeader*>(s_.payload(spare_ring));
    next->items_base =
        static_cast<std::uint32_t>(ring_.header->items_base + writer.position().items);
    next->bytes_base = A::load_relaxed(row_.sender.bytes);
    give_ring(s_, spare_ring, id_);
    A::store_release(ring_.header->next, spare_ring);  // C1, the commit
    A::store_relaxed(row_.sender.cached, 0);
    A::store_release(row_.sender.ring, spare_ring);
    spare_ring = 0;
    return send_entered(m, spare_ring, wanted);
  }
  if (leased_) {
    BlockHeader& block = s_.block(m.blocks[0].offset);
    A::store_relaxed(block.order, static_cast<std::uint32_t>(ring_.header->items_base +
                                                             writer.position().items));
    // relaxed: P1 carries both. Not taken yet (E2), so if we die here it is no message.
    A::store_relaxed(block.lease,
                     Lease{id_, static_cast<std::uint8_t>(m.kind), m.tag, m.buffers, false}.pack());
  }
  std::byte* body = at + kRecordHeader;
  std::memcpy(body, m.blocks, m.block_count * sizeof(BlockRef));
  if (m.payload_size != 0)
    std::memcpy(body + m.block_count * sizeof(BlockRef), m.payload, m.payload_size);
  const std::uint64_t bytes = A::load_relaxed(row_.sender.bytes) + weight;
  writer.publish(
      {size, m.payload_size, m.kind, m.payload_in_block, static_cast<std::uint8_t>(m.block_count)},
      bytes);
  A::store_relaxed(row_.sender.bytes, bytes);
  A::store_release(row_.sender.items,
                   static_cast<std::uint32_t>(ring_.header->items_base + writer.position().items));
  ring_bell_entered();
  return Status::kOk;
}

Status SenderEnd::try_send(const Outgoing& m, std::int64_t lock_until, Failure& why) {
  if (closed_) return Status::kClosed;
  std::uint64_t spare_ring = 0;
  std::uint32_t wanted = 0;
  Status status = Status::kOk;
  do {
    if (wanted != 0) {
      status = make_ring(s_, id_, wanted, spare_ring, why);
      if (status != Status::kOk && wanted > kMinRing)
        status = make_ring(s_, id_, wanted = kMinRing, spare_ring, why);
      if (status != Status::kOk) return status;
      wanted = 0;
    }
    status = enter(lock_until);
    if (status != Status::kOk) break;
    status = send_entered(m, spare_ring, wanted);
    leave();
  } while (status == Status::kExhausted);
  if (spare_ring != 0) (void)free_block(s_, spare_ring);
  // relaxed: a hint for who waits for room; the last refusal counts
  if (status == Status::kFull) {
    wanted_.store(m.weight(), std::memory_order_relaxed);
  } else if (status == Status::kOk && wanted_.load(std::memory_order_relaxed) != 0) {
    wanted_.store(0, std::memory_order_relaxed);
  }
  lower_alarm();
  if (status == Status::kOk && bell_kind_ != BellKind::kSocket)
    Doorbell<>(row_.data, s_.asymmetric()).ring_futex();
  return status;
}

Status SenderEnd::send_slice(const Outgoing& m, std::int64_t until_ns, Failure& why, Wait& wait) {
  look_for_hangup();
  const Status status = try_send(m, slice_end(platform::kForever, wait), why);
  if (status != Status::kFull) return status == Status::kContended ? Status::kSlice : status;
  if (platform::monotonic_ns() >= until_ns) return Status::kFull;
  const std::uint64_t weight = m.weight();
  Doorbell<> bell(row_.room, s_.asymmetric());
  const auto ready = [&] { return has_room(weight) || is_gone(other()); };
  if (!spin(bell, until_ns, ready)) sleep(bell, until_ns, wait, ready);
  if (!s_.is_whole()) return s_.fault();
  if (ready()) return Status::kSlice;
  if (const Status health = s_.health(); health != Status::kOk) return health;
  return peer_gone(true) == Status::kOk ? Status::kSlice : Status::kBroken;
}

// ---- receiver ----

bool ReceiverEnd::has_data() noexcept {
  return A::load_acquire(row_.sender.items) != A::load_acquire(row_.receiver.items) ||
         (leased_ && A::load_acquire(row_.returned) != 0) || is_gone(row_.sender);
}

bool ReceiverEnd::may_receive() noexcept {
  if (!has_data()) return false;
  // D8: the end of a leased channel comes when nobody has a message it may not finish.
  return !leased_ || !is_empty() || A::load_acquire(row_.returned) != 0 ||
         !is_leased_elsewhere(s_, id_);
}

bool ReceiverEnd::is_empty() noexcept {
  // Counted behind the fact by each side, so equal means empty: exactly while no sender is inside.
  return A::load_acquire(row_.receiver.items) == A::load_acquire(row_.sender.items) &&
         (!leased_ || A::load_acquire(row_.returned) == 0);
}

/// D3, D4: a byte stands in the descriptor of an empty channel. `flags`: only if one is set.
void ReceiverEnd::drain_if_empty(std::uint32_t flags) noexcept {
  if (bell_kind_ == BellKind::kFutex || bell_fd_ < 0) return;
  // relaxed: a hint; the lock below carries the truth
  const std::uint32_t word = A::load_relaxed(row_.data.word);
  if ((word & flags) == 0 || (word & kBellToken) == 0 || !is_empty()) return;
  const bool held = row_.sender.lock.acquire(
      s_.token(), platform::monotonic_ns() + kShortSlice, [this](Token t) { return s_.is_dead(t); },
      [this] { recover_sender(s_, row_, id_); });
  if (!held) return;  // a stopped sender: the byte stays, the descriptor reads ready too long
  if (is_empty()) {
    Doorbell<>(row_.data, s_.asymmetric()).clear_token();
    platform::drain_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
  }
  row_.sender.lock.release();
}

Status ReceiverEnd::receive_entered(Incoming& m) noexcept {
  if (s_.is_poisoned()) return s_.fault();
  for (;;) {
    const std::uint64_t head = A::load_acquire(row_.receiver.ring);
    if (head != ring_offset_ || ring_offset_ == 0 || ring_.header->capacity != ring_.capacity) {
      if (!open_ring(s_, head, id_, ring_)) return s_.poison(__LINE__);
      ring_offset_ = head;
    }
    RingReader<> reader(ring_, row_.receiver.cached);
    RecordHeader header{};
    std::uint64_t cumulative = 0;
    const std::byte* body = nullptr;
    Front front = reader.front(header, cumulative, body);
    if (front == Front::kEmpty) {
      const std::uint64_t next = A::load_acquire(ring_.header->next);  // C1 acquire
      if (next == 0) {
        drain_if_empty(kBellArmed);
        return Status::kEmpty;
      }
      // Behind `next` nothing is written here any more: look once more, then move on.
      front = reader.front(header, cumulative, body);
      if (front == Front::kEmpty) {
        BlockPlace p{};
        if (!s_.place(head, p)) return s_.poison(__LINE__);
        note_slot(s_, p);
        A::store_release(s_.block(head).creator, s_.token());  // C2
        A::store_relaxed(row_.receiver.cached, 0);
        A::store_release(row_.receiver.ring, next);  // C2, the commit
        ring_offset_ = 0;
        if (const Status status = free_block(s_, head, by_channel(id_)); status != Status::kOk)
          return status;
        continue;
      }
    }
    if (front == Front::kCorrupted) return s_.poison(__LINE__);

    // From here on only local copies of what the ring says are used.
    m.kind = header.kind;
    m.payload_in_block = header.payload_in_block;
    m.block_count = header.blocks;
    m.payload_size = header.payload;
    if (header.payload > kMaxInline) return s_.poison(__LINE__);
    std::memcpy(m.blocks, body, header.blocks * sizeof(BlockRef));
    std::memcpy(m.payload, body + header.blocks * sizeof(BlockRef), header.payload);
    for (std::uint32_t i = 0; i < header.blocks; ++i) {
      BlockPlace p{};
      Holder holder{};
      if (!s_.place(m.blocks[i].offset, p) || !read_holder(s_, p, holder) ||
          holder.kind == HolderKind::kFree ||
          // Of a ticket the length is the shared block's, which is checked when it is read.
          (m.blocks[i].length > p.size() - sizeof(BlockHeader) && !is_ticket(s_, p.offset)))
        return s_.poison(__LINE__);
      note_slot(s_, p);
      if (leased_) {
        auto& word = s_.block(p.offset).lease;
        Lease lease = Lease::unpack(A::load_relaxed(word));  // relaxed: P1 carried it
        if (lease.channel != id_ || lease.kind != static_cast<std::uint8_t>(m.kind))
          return s_.poison(__LINE__);
        lease.taken = true;
        m.lease = lease.pack();
        m.is_redelivered = false;
        A::store_release(word, m.lease);  // E2: before the holder
      }
      store_holder(s_, p, by_process(s_.token()));  // D5: claim, then advance
    }
    reader.pop(header);  // D5, the commit
    A::store_relaxed(row_.receiver.bytes, cumulative);
    A::store_release(row_.receiver.items, static_cast<std::uint32_t>(ring_.header->items_base +
                                                                     reader.position().items));
    drain_if_empty(kBellArmed);
    return Status::kOk;
  }
}

/// A message that was handed back comes before younger ones; the oldest of them first.
Status ReceiverEnd::take_returned(Incoming& m, std::int64_t lock_until) noexcept {
  // Room for the walk, before the lock: nothing is allocated under an owner word.
  std::vector<std::uint32_t> heads(s_.committed_pages());
  if (const Status status = enter(lock_until); status != Status::kOk) return status;
  Status status = s_.is_poisoned() ? Status::kCorrupted : Status::kEmpty;
  for (std::uint32_t tries = 0; status == Status::kEmpty && tries < 4 * kKnown; ++tries) {
    if (known_next_ == known_count_ || known_at_ != A::load_acquire(row_.give_backs)) {
      known_at_ = A::load_acquire(row_.give_backs);
      const std::uint32_t counted = A::load_acquire(row_.returned);
      const std::uint32_t found = find_returned(
          s_, id_, heads.data(), static_cast<std::uint32_t>(heads.size()), known_, kKnown);
      // E4: what is handed back from here on counts itself on top.
      if (found != counted) A::fetch_add(row_.returned, found - counted);
      known_next_ = 0;
      known_count_ = std::min(found, kKnown);
      if (found == 0) break;
    }
    const std::uint64_t offset = known_[known_next_++].offset;
    BlockPlace p{};
    if (!s_.place(offset, p)) continue;
    note_slot(s_, p);
    if (!change_holder(s_, p, by_channel(id_), by_process(s_.token()))) continue;  // E6 acquire
    if (A::load_acquire(row_.returned) != 0) A::fetch_add(row_.returned, ~0U);
    const std::uint64_t word = A::load_relaxed(s_.block(offset).lease);
    const std::uint64_t length = A::load_relaxed(s_.block(offset).length);
    if (Lease::unpack(word).channel != id_ || length > p.size() - sizeof(BlockHeader)) {
      status = s_.poison(__LINE__);
      break;
    }
    m.kind = static_cast<RecordKind>(Lease::unpack(word).kind);
    m.payload_in_block = true;
    m.payload_size = 0;
    m.block_count = 1;
    m.blocks[0] = {offset, length};
    m.lease = word;
    m.is_redelivered = true;
    status = Status::kOk;
  }
  leave();
  return status;
}

Status ReceiverEnd::try_receive(Incoming& m, std::int64_t lock_until) noexcept {
  if (closed_) return Status::kClosed;
  Status status = Status::kEmpty;
  if (leased_ && A::load_acquire(row_.returned) != 0) [[unlikely]] {
    status = take_returned(m, lock_until);
    if (status != Status::kEmpty) {
      if (status == Status::kOk && max_items() != 0)
        Doorbell<>(row_.room, s_.asymmetric()).ring_futex();
      return status;
    }
  }
  status = enter(lock_until);
  if (status != Status::kOk) return status;
  status = receive_entered(m);
  leave();
  lower_alarm();
  // relaxed: a sender can only sleep for room once a limit was given
  if (status == Status::kOk &&
      (A::load_relaxed(row_.max_items) | A::load_relaxed(row_.max_bytes)) != 0)
    Doorbell<>(row_.room, s_.asymmetric()).ring_futex();
  return status;
}

void ReceiverEnd::wait_data(std::int64_t until_ns, Wait& wait) noexcept {
  Doorbell<> bell(row_.data, s_.asymmetric());
  const auto ready = [this] { return has_data(); };
  if (spin(bell, until_ns, ready)) return;
  if (bell_kind_ != BellKind::kSocket || bell_fd_ < 0) {
    sleep(bell, until_ns, wait, ready);
    return;
  }
  // No flag is needed: the byte stands as long as the ring is not empty (D4). It may stand longer
  // while nobody watches, so that a receiver that does not sleep costs no system call.
  drain_if_empty(kBellToken);
  const std::int64_t end = slice_end(until_ns, wait);
  mark_asleep(wait);
  platform::FdEvents events;
  if (platform::poll_fd(bell_fd_, end, events) > 0 && events.hangup) hangup_ = true;
}

Status ReceiverEnd::receive_slice(Incoming& m, std::int64_t until_ns, Wait& wait) noexcept {
  look_for_hangup();
  Status gone = peer_gone(false);  // D7: first whether the other side is gone,
  const bool leased_out = leased_ && gone != Status::kOk && is_leased_elsewhere(s_, id_);  // D8
  Status status = try_receive(m, slice_end(platform::kForever, wait));  // then the ring
  if (status == Status::kContended) return Status::kSlice;
  if (status != Status::kEmpty) return status;
  if (leased_out) return wait_leases(until_ns, wait);
  if (gone != Status::kOk) return gone;
  if (platform::monotonic_ns() >= until_ns) {
    gone = peer_gone(true);
    if (gone == Status::kOk) return Status::kEmpty;
    return Status::kSlice;  // once more, with D7's order
  }
  wait_data(until_ns, wait);
  if (!s_.is_whole()) return s_.fault();
  if (!has_data()) {
    if (const Status health = s_.health(); health != Status::kOk) return health;
    (void)peer_gone(true);
    if (leased_) {  // a receiver beside us that died has what we wait for
      reap_dead_holders(s_, row_.receiver_holds);
      reap_some(s_, 2);
    }
  }
  return Status::kSlice;
}

/// The channel has ended but for what others have taken: it comes back to us if they die.
Status ReceiverEnd::wait_leases(std::int64_t until_ns, Wait& wait) noexcept {
  if (platform::monotonic_ns() >= until_ns) return Status::kEmpty;
  Doorbell<> bell(row_.data, s_.asymmetric());
  sleep(bell, until_ns, wait, [this] { return A::load_acquire(row_.returned) != 0; });
  return Status::kSlice;
}

Status ReceiverEnd::poll_slice(std::int64_t until_ns, Wait& wait) noexcept {
  if (closed_) return Status::kClosed;
  if (s_.is_poisoned()) return Status::kCorrupted;
  if (has_data()) return Status::kOk;
  look_for_hangup();
  if (has_data() || peer_gone(true) != Status::kOk) return Status::kOk;
  if (platform::monotonic_ns() >= until_ns) {
    // A producer killed between its publish and its count left an item that is not counted.
    bool found = false;
    if (enter(slice_end(platform::kForever, wait)) == Status::kOk) {
      const std::uint64_t head = A::load_acquire(row_.receiver.ring);
      ring_offset_ = open_ring(s_, head, id_, ring_) ? head : 0;
      found = ring_offset_ != 0 &&
              (A::load_acquire(ring_.header->next) != 0 ||
               RingWord::unpack(A::load_acquire(ring_.header->write_word)).items !=
                   RingWord::unpack(A::load_acquire(ring_.header->read_word)).items);
      leave();
    }
    return found ? Status::kOk : Status::kEmpty;
  }
  wait_data(until_ns, wait);
  if (!s_.is_whole()) return s_.fault();
  if (has_data() || hangup_) return Status::kOk;
  const Status health = s_.health();
  return health == Status::kOk ? Status::kSlice : health;
}

Status ReceiverEnd::arm() noexcept {
  if (bell_kind_ == BellKind::kFutex || bell_fd_ < 0) return Status::kFull;
  const bool held = row_.sender.lock.acquire(
      s_.token(), platform::kForever, [this](Token t) { return s_.is_dead(t); },
      [this] { recover_sender(s_, row_, id_); });
  if (!held) return Status::kContended;
  Doorbell<> bell(row_.data, s_.asymmetric());
  bell.arm();
  const bool token = (bell.look() & kBellToken) != 0;
  if (is_empty() && token) {
    bell.clear_token();
    platform::drain_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
  } else if (!is_empty() && !token && bell_kind_ == BellKind::kEventfd) {
    bell.set_token();
    (void)platform::write_token(bell_fd_, true);
  }
  row_.sender.lock.release();
  return Status::kOk;
}

}  // namespace ipcbuf
