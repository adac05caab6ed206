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
#include "ipcbuf/slice.hpp"
#include "ipcbuf/thread_heap.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::int64_t kMaxSpin = 60'000;  // ns: about what waking a sleeper costs
constexpr std::int64_t kMinSpin = 2'000;
// ns. Whoever knows of a death has heard of it behind the hang-up, from `wait` or a descriptor, and
// that takes longer; an end that was closed says so in its row.
constexpr std::int64_t kGlance = 5'000;
constexpr std::uint32_t kFew = 16;        // messages found at once, that many times in a row,
constexpr std::uint32_t kStreak = 4;      // say that it pays to let more of them gather
constexpr int kGatherLooks = 16;          // at most, and
constexpr int kGatherPauses = 8;          // of the processor between two: some 0.1 us
constexpr std::uint32_t kSpinRetry = 32;  // waits without spinning before it is tried again
constexpr std::uint32_t kLargestRing = (1U << 20) - kRingOverhead;
constexpr std::uint32_t kShort = 128;  // bytes up to which a call costs more than a copy

/// Of the sender's bytes, which may end anywhere.
inline void copy_into_record(std::byte* to, const void* bytes, std::uint32_t n) noexcept {
  const auto* from = static_cast<const std::byte*>(bytes);
  if (n > kShort) {
    std::memcpy(to, from, n);
  } else if (n >= 16) {
    for (std::uint32_t i = 0; i + 16 < n; i += 16) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + n - 16, from + n - 16, 16);
  } else if (n >= 8) {
    std::memcpy(to, from, 8);
    std::memcpy(to + n - 8, from + n - 8, 8);
  } else {
    for (std::uint32_t i = 0; i < n; ++i) to[i] = from[i];
  }
}

/// In steps of 16: a record ends at a multiple of that, and so does the room for its bytes.
inline void copy_from_record(std::byte* to, const std::byte* from, std::uint32_t n) noexcept {
  if (n > kShort) {
    std::memcpy(to, from, n);
    return;
  }
  for (std::uint32_t i = 0; i < n; i += 16) std::memcpy(to + i, from + i, 16);
}
static_assert(kMaxInline % 16 == 0);

}  // namespace

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
      plain_(!shared_ && !leased_ && row_.bell_kind == BellKind::kFutex),
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

bool Endpoint::is_gone(const Atomic<std::uint32_t>& end_state) noexcept {
  const auto state = static_cast<EndState>(A::load_acquire(end_state));
  return state == EndState::kClosed || state == EndState::kDead;
}

/// C5 acquire. Nobody who leaves closes the end under us: we hold it.
bool Endpoint::is_shut_down() noexcept {
  return end_ == End::kReceiver && shared_ && is_gone(my_state());
}

void Endpoint::leave() noexcept {
  if (shared_) {
    mine().lock.release();
  } else {
    user_.leave();
  }
}

Status Endpoint::enter(std::int64_t until_ns) noexcept {
  const Token me = s_.token();
  if (shared_) {
    Status status = Status::kOk;
    if (me == 0 || !mine().lock.try_acquire(me)) [[unlikely]]
      status = wait_for_lock(me, until_ns);
    // E1: `close` stores, then looks whether we are inside; we are inside, then look.
    if (status == Status::kOk && closed_) [[unlikely]] {
      leave();
      return Status::kClosed;
    }
    return status;
  }
  if (me == 0) [[unlikely]]
    return s_.no_seat();
  if (!user_.enter(thread_mark(), me, s_.asymmetric())) [[unlikely]]
    return Status::kBusyEnd;
  if (closed_) [[unlikely]] {  // E1
    user_.leave();
    return Status::kClosed;
  }
  if (owned_ == me) [[likely]]
    return Status::kOk;
  // Once it is ours it is so until the end is given up: only who joins a free end resets it.
  std::uint32_t owner = 0;
  if (!A::compare_exchange(mine().owner, owner, me) && owner != me) {
    user_.leave();
    return Status::kBusyEnd;
  }
  owned_ = me;
  stretch_ = {};
  return Status::kOk;
}

Status Endpoint::wait_for_lock(Token me, std::int64_t until_ns) noexcept {
  if (me == 0) return s_.no_seat();
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

Ring<> Endpoint::no_ring() noexcept {
  static struct NoRing : RingHeader {
    NoRing() noexcept : RingHeader{} { capacity = 1; }
  } none;
  return {&none, nullptr, 0};
}

bool Endpoint::open_end(std::uint64_t offset) noexcept {
  if (offset == ring_offset_ && ring_.header->capacity == ring_.capacity) [[likely]]
    return true;
  stretch_ = {};
  if (!open_ring(s_, offset, id_, ring_)) {
    ring_ = no_ring();
    return false;
  }
  ring_offset_ = offset;
  return true;
}

void Endpoint::close() {
  if (closed_.exchange(true)) return;
  if (watched_) Bridge::closed(*this);  // looks behind closed_, as the bridge does the other way
  // E1: another thread of ours may be inside, and without our hold the channel may become
  // another's under it. Nobody waits inside. Who was inside at a fork is not in the child.
  const Token me = s_.token();
  if (me != 0 && !shared_) user_.wait_until_left(thread_mark(), me);
  while (me != 0 && shared_ && mine().lock.owner() == me) platform::cpu_pause();
  if (me != 0 && !shared_ && A::load_acquire(mine().owner) == me) {
    auto open = static_cast<std::uint32_t>(EndState::kOpen);
    // C4 release, to peer_gone: all that was published is older.
    (void)A::compare_exchange(my_state(), open, static_cast<std::uint32_t>(EndState::kClosed));
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

void Endpoint::glance_at_hangup() noexcept {
  if (bell_kind_ != BellKind::kSocket || bell_fd_ < 0 || hangup_) return;
  const std::int64_t now = platform::monotonic_ns();
  if (now - looked_at_.load(std::memory_order_relaxed) < kGlance) return;
  looked_at_.store(now, std::memory_order_relaxed);
  look_for_hangup();
}

Status Endpoint::peer_gone(bool prove) noexcept {
  const auto verdict = [this] {
    if (is_shut_down()) return Status::kEnded;
    switch (static_cast<EndState>(A::load_acquire(other_state()))) {  // C4 acquire
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

/// How long an attempt waits for the lock of a shared end: a slice, and not beyond the caller's
/// time, but long enough for who is inside and runs to leave. A stopped process stays inside.
std::int64_t Endpoint::lock_end(std::int64_t until_ns, Wait& wait) noexcept {
  const std::int64_t end = slice_end(platform::kForever, wait.began);
  if (until_ns >= end) return end;
  return std::max(until_ns, platform::monotonic_ns() + kShortSlice);
}

/// While the other side goes on, lets it get ahead: two who follow each other closely take the same
/// cache lines from each other for every single message. True: it went on.
bool Endpoint::let_gather() noexcept {
  const std::uint32_t first = pending();
  std::uint32_t seen = first;
  for (int i = 0; i < kGatherLooks; ++i) {
    for (int pauses = 0; pauses < kGatherPauses; ++pauses) platform::cpu_pause();
    const std::uint32_t now = pending();
    if (now == seen) break;
    seen = now;
  }
  return seen != first;
}

/// Spins for about as long as a wake would cost; learns from success. True: `ready`.
template <class Ready>
bool Endpoint::spin(std::int64_t until_ns, Ready&& ready) noexcept {
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
  SpinClaim claim(mine());
  if (!claim.take(s_.token(), begin, end)) return false;
  bool found = false;
  do {
    for (int i = 0; i < 16 && !found; ++i) {
      found = ready();
      if (!found) platform::cpu_pause();
    }
  } while (!found && platform::monotonic_ns() < end);
  claim.end();
  if (found) {
    (void)let_gather();
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
  const std::int64_t end = slice_end(until_ns, wait.began);
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

[[gnu::noinline]] bool SenderEnd::looks_for_room(std::uint64_t weight) noexcept {
  received_seen_ = static_cast<std::uint32_t>(A::load_acquire(row_.receiver.items));  // C3
  return has_room(weight);
}

/// The same without a look at the receiver's line while what was seen there last is enough.
bool SenderEnd::has_room_entered(std::uint64_t weight) noexcept {
  // relaxed: given once
  if (shared_ || A::load_relaxed(row_.max_bytes) != 0) return has_room(weight);
  const std::uint64_t max_items = A::load_relaxed(row_.max_items);
  if (max_items == 0) return true;
  const auto sent = static_cast<std::uint32_t>(A::load_relaxed(row_.sender.items));  // I2
  // Another of this process may have sent: then what was seen may be more than a whole turn old.
  if (stretch_.at != nullptr && limit_ == max_items && sent == stretch_.items &&
      sent - received_seen_ < max_items)
    return true;
  return looks_for_room(weight);
}

bool SenderEnd::may_send() noexcept {
  return has_room(wanted_.load(std::memory_order_relaxed)) || is_gone(other_state());
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
  if (s_.is_poisoned()) [[unlikely]]
    return s_.fault();
  if (hangup_ || is_gone(other_state())) [[unlikely]]
    return Status::kBroken;
  const std::uint64_t weight = m.weight();
  if (!has_room_entered(weight)) return Status::kFull;
  if (!open_end(A::load_acquire(row_.sender.ring))) [[unlikely]]
    return s_.poison(__LINE__);
  if (leased_ && (m.block_count != 1 || m.payload_size != 0)) [[unlikely]]
    return Status::kMismatch;
  const std::uint32_t size = record_size(m.payload_size, m.block_count);
  const Ring<> ring = ring_;  // no store into the ring can be one to this
  RingWriter<> writer(ring, row_.sender.cached);
  std::byte* at = writer.room(size);
  if (at == nullptr) [[unlikely]] {
    if (spare_ring == 0) {
      // Four times larger, headers included, so that each ring fills whole pages.
      constexpr auto kOverhead = static_cast<std::uint32_t>(kRingOverhead);
      wanted = std::min(kLargestRing, (ring.capacity + kOverhead) * 4 - kOverhead);
      return Status::kExhausted;  // the caller makes a ring outside the lock and comes again
    }
    link_ring(spare_ring, writer.position());
    spare_ring = 0;
    return send_entered(m, spare_ring, wanted);
  }
  if (leased_) [[unlikely]] {
    BlockHeader& block = s_.block(m.blocks[0].offset);
    A::store_relaxed(block.order,
                     static_cast<std::uint32_t>(ring.header->items_base + writer.position().items));
    // relaxed: P1 carries both. Not taken yet (E2), so if we die here it is no message.
    A::store_relaxed(block.lease,
                     Lease{id_, static_cast<std::uint8_t>(m.kind), m.tag, m.buffers, false}.pack());
  }
  std::byte* body = at + kRecordHeader;
  for (std::uint32_t i = 0; i < m.block_count; ++i, body += sizeof(BlockRef))
    std::memcpy(body, &m.blocks[i], sizeof(BlockRef));
  copy_into_record(body, m.payload, m.payload_size);
  const std::uint64_t bytes = A::load_relaxed(row_.sender.bytes) + weight;
  writer.publish(
      {size, m.payload_size, m.kind, m.payload_in_block, static_cast<std::uint8_t>(m.block_count)},
      bytes);
  A::store_relaxed(row_.sender.bytes, bytes);
  A::store_release(row_.sender.items,
                   static_cast<std::uint32_t>(ring.header->items_base + writer.position().items));
  if (plain_) renew_stretch(ring, writer);
  if (bell_kind_ != BellKind::kFutex) ring_bell_entered();
  return Status::kOk;
}

/// Behind a message, inside: what of the ring and of the limit is known to be free.
void SenderEnd::renew_stretch(const Ring<>& ring, const RingWriter<>& writer) noexcept {
  const RingWord at = writer.position();
  // relaxed: given once; ours (I2)
  limit_ = A::load_relaxed(row_.max_items);
  const auto sent = static_cast<std::uint32_t>(A::load_relaxed(row_.sender.items));
  const std::uint64_t inside = sent - received_seen_;
  const std::uint64_t records = limit_ == 0 ? UINT32_MAX : limit_ - std::min(limit_, inside);
  stretch_ = {ring.data + at.index, writer.ahead(),
              static_cast<std::uint32_t>(std::min<std::uint64_t>(records, UINT32_MAX)), sent,
              at.pack()};
}

void SenderEnd::link_ring(std::uint64_t spare_ring, RingWord position) noexcept {
  auto* next = reinterpret_cast<RingHeader*>(s_.payload(spare_ring));
  next->items_base = static_cast<std::uint32_t>(ring_.header->items_base + position.items);
  next->bytes_base = A::load_relaxed(row_.sender.bytes);
  give_ring(s_, spare_ring, id_);
  A::store_release(ring_.header->next, spare_ring);  // C1, the commit
  A::store_relaxed(row_.sender.cached, 0);
  A::store_release(row_.sender.ring, spare_ring);
}

/// After a refusal for want of a ring of `wanted` bytes: makes one outside the lock.
Status SenderEnd::send_in_new_ring(const Outgoing& m, std::int64_t lock_until, std::uint32_t wanted,
                                   Failure& why) {
  std::uint64_t spare_ring = 0;
  Status status = Status::kExhausted;
  while (status == Status::kExhausted) {
    status = make_ring(s_, id_, wanted, spare_ring, why);
    if (status != Status::kOk && wanted > kMinRing)
      status = make_ring(s_, id_, wanted = kMinRing, spare_ring, why);
    if (status != Status::kOk) return status;
    status = enter(lock_until);
    if (status != Status::kOk) break;
    status = send_entered(m, spare_ring, wanted);
    leave();
  }
  if (spare_ring != 0) (void)free_block(s_, spare_ring);
  return status;
}

/// What nearly every message of a plain end needs and nothing else, with the same stores in the
/// same order as `send_entered`. False: nothing was done, and that one says why.
bool SenderEnd::send_plainly(const Outgoing& m) noexcept {
  const Token me = s_.token();
  if (!user_.enter_first(thread_mark(), me)) return false;
  EndRow& mine = row_.sender;
  Stretch<>& stretch = stretch_;
  const std::uint32_t size = record_size(m.payload_size, 0);
  // relaxed: ours (I4), or given once. E1: inside, then look.
  const bool may =
      stretch.records != 0 && size <= stretch.bytes && owned_ == me &&
      A::load_relaxed(mine.items) == stretch.items && A::load_relaxed(row_.max_items) == limit_ &&
      A::load_relaxed(row_.max_bytes) == 0 && !closed_ && !hangup_ && !s_.is_poisoned() &&
      A::load_acquire(row_.receiver_state()) == static_cast<std::uint32_t>(EndState::kOpen);
  if (may) [[likely]] {
    copy_into_record(stretch.at + kRecordHeader, m.payload, m.payload_size);
    const std::uint64_t bytes = A::load_relaxed(mine.bytes) + size;
    stretch.publish(*ring_.header, m.kind, m.payload_size, bytes);
    A::store_relaxed(mine.bytes, bytes);
    A::store_release(mine.items, stretch.items);
  }
  user_.leave_first();
  return may;
}

Status SenderEnd::try_send(const Outgoing& m, std::int64_t lock_until, Failure& why) {
  if (plain_ && m.block_count == 0 && send_plainly(m)) [[likely]] {
    if (wanted_.load(std::memory_order_relaxed) != 0) wanted_.store(0, std::memory_order_relaxed);
    lower_alarm();
    Doorbell<>(row_.data, s_.asymmetric()).ring_futex();
    return Status::kOk;
  }
  if (closed_) [[unlikely]]
    return Status::kClosed;
  Status status = enter(lock_until);
  if (status == Status::kOk) [[likely]] {
    std::uint64_t no_ring = 0;
    std::uint32_t wanted = 0;
    status = send_entered(m, no_ring, wanted);
    leave();
    if (status == Status::kExhausted) [[unlikely]]
      status = send_in_new_ring(m, lock_until, wanted, why);
  }
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
  const Status status = try_send(m, lock_end(until_ns, wait), why);
  if (status != Status::kFull && status != Status::kContended) return status;
  if (platform::monotonic_ns() >= until_ns) return Status::kFull;
  if (status == Status::kContended) return Status::kSlice;
  const std::uint64_t weight = m.weight();
  Doorbell<> bell(row_.room, s_.asymmetric());
  const auto ready = [&] { return has_room(weight) || is_gone(other_state()); };
  if (!spin(until_ns, ready)) sleep(bell, until_ns, wait, ready);
  if (!s_.is_whole()) return s_.fault();
  if (ready()) return Status::kSlice;
  if (const Status health = s_.health(); health != Status::kOk) return health;
  return peer_gone(true) == Status::kOk ? Status::kSlice : Status::kBroken;
}

Status SenderEnd::shut_down(std::int64_t lock_until) noexcept {
  if (const Status status = enter(lock_until); status != Status::kOk) return status;
  // Nobody is in the middle of a message, and who comes behind us finds the receiver closed, so
  // the first of the two is the commit.
  for (auto* state : {&row_.receiver_state(), &row_.sender_state()}) {
    auto open = static_cast<std::uint32_t>(EndState::kOpen);
    (void)A::compare_exchange(*state, open,
                              static_cast<std::uint32_t>(EndState::kClosed));  // C5, C4
  }
  ring_bell_entered();
  leave();
  wake_channel(s_, row_);
  return Status::kOk;
}

// ---- receiver ----

bool ReceiverEnd::has_data() noexcept {
  return A::load_acquire(row_.sender.items) != A::load_acquire(row_.receiver.items) ||
         (leased_ && A::load_acquire(row_.returned) != 0) || is_over();
}

bool ReceiverEnd::is_over() noexcept { return is_gone(row_.sender_state()) || is_shut_down(); }

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

/// The lock of the sending end, for the descriptor (D3). False: a stopped sender has it.
bool ReceiverEnd::lock_senders() noexcept {
  return row_.sender.lock.acquire(
      s_.token(), platform::monotonic_ns() + kShortSlice, [this](Token t) { return s_.is_dead(t); },
      [this] { recover_sender(s_, row_, id_); });
}

/// D3, D4: a byte stands in the descriptor of an empty channel. `flags`: only if one is set.
void ReceiverEnd::drain_if_empty(std::uint32_t flags) noexcept {
  if (bell_kind_ == BellKind::kFutex || bell_fd_ < 0) return;
  // relaxed: a hint; the lock below carries the truth
  const std::uint32_t word = A::load_relaxed(row_.data.word);
  if ((word & flags) == 0 || (word & kBellToken) == 0 || !is_empty()) return;
  if (is_over()) return;        // the end stays to be seen
  if (!lock_senders()) return;  // the byte stays, the descriptor reads ready too long
  if (is_empty()) {
    Doorbell<>(row_.data, s_.asymmetric()).clear_token();
    platform::drain_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
  }
  row_.sender.lock.release();
}

/// From an emptied ring, the first of the chain, to the one behind it.
Status ReceiverEnd::move_on(std::uint64_t head, std::uint64_t next) noexcept {
  BlockPlace p{};
  if (!s_.place(head, p)) return s_.poison(__LINE__);
  note_slot(s_, p);
  A::store_release(s_.block(head).creator, s_.token());  // C2
  A::store_relaxed(row_.receiver.cached, 0);
  A::store_release(row_.receiver.ring, next);  // C2, the commit
  ring_ = no_ring();
  stretch_ = {};
  return free_block(s_, head, by_channel(id_));
}

/// The blocks of a message become ours (D5: claim, then advance).
Status ReceiverEnd::take_blocks(Incoming& m) noexcept {
  for (std::uint32_t i = 0; i < m.block_count; ++i) {
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
    store_holder(s_, p, by_process(s_.token()));  // D5
  }
  return Status::kOk;
}

Status ReceiverEnd::receive_entered(Incoming& m) noexcept {
  if (s_.is_poisoned()) [[unlikely]]
    return s_.fault();
  std::uint64_t next = 0;
  for (;;) {
    const std::uint64_t head = A::load_acquire(row_.receiver.ring);
    if (!open_end(head)) [[unlikely]]
      return s_.poison(__LINE__);
    const Ring<> ring = ring_;  // no store into the ring can be one to this
    RingReader<> reader(ring, row_.receiver.cached);
    RecordHeader header{};
    std::uint64_t cumulative = 0;
    const std::byte* body = nullptr;
    const Front front = reader.front(header, cumulative, body);
    if (front == Front::kEmpty) {
      if (next != 0) {
        // Behind `next` nothing is written here any more, and we have looked once more.
        if (const Status status = move_on(head, next); status != Status::kOk) return status;
        next = 0;
        continue;
      }
      next = A::load_acquire(ring.header->next);  // C1 acquire
      if (next != 0) continue;
      if (bell_kind_ != BellKind::kFutex) drain_if_empty(kBellArmed);
      return Status::kEmpty;
    }
    if (front == Front::kCorrupted) [[unlikely]]
      return s_.poison(__LINE__);

    // From here on only local copies of what the ring says are used.
    m.kind = header.kind;
    m.payload_in_block = header.payload_in_block;
    m.block_count = header.blocks;
    m.payload_size = header.payload;
    if (header.payload > kMaxInline) [[unlikely]]
      return s_.poison(__LINE__);
    for (std::uint32_t i = 0; i < header.blocks; ++i, body += sizeof(BlockRef))
      std::memcpy(&m.blocks[i], body, sizeof(BlockRef));
    copy_from_record(m.payload, body, header.payload);
    if (header.blocks != 0)
      if (const Status status = take_blocks(m); status != Status::kOk) return status;
    reader.pop(header);  // D5, the commit
    A::store_relaxed(row_.receiver.bytes, cumulative);
    const RingWord at = reader.position();
    const auto items = static_cast<std::uint32_t>(ring.header->items_base + at.items);
    A::store_release(row_.receiver.items, items);
    if (plain_) stretch_ = {ring.data + at.index, ring.capacity - at.index, 0, items, at.pack()};
    if (bell_kind_ != BellKind::kFutex) drain_if_empty(kBellArmed);
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

/// Inside, when all that was known to be there is taken.
bool ReceiverEnd::look_for_more() noexcept {
  Stretch<>& stretch = stretch_;
  Atomic<std::uint64_t>& cache = row_.receiver.cached;
  if (!stretch.look(ring_, cache)) {
    streak_ = 0;
    return false;
  }
  // Several times there was something, and each time little: we are as fast as the sender.
  if (stretch.records >= kFew) {
    streak_ = 0;
  } else if (++streak_ >= kStreak) {
    if (!let_gather()) streak_ = 0;
    return stretch.look(ring_, cache);
  }
  return true;
}

/// What nearly every message of a plain end needs and nothing else, with the same stores in the
/// same order as `receive_entered`. False: nothing was done, and that one says why.
bool ReceiverEnd::receive_plainly(Incoming& m) noexcept {
  const Token me = s_.token();
  if (!user_.enter_first(thread_mark(), me)) return false;
  EndRow& mine = row_.receiver;
  Stretch<>& stretch = stretch_;
  RecordHeader header{};
  std::uint64_t cumulative = 0;
  // E1 as in `enter`. relaxed: ours (I4)
  const bool may = stretch.at != nullptr && owned_ == me &&
                   A::load_relaxed(mine.items) == stretch.items && !closed_ && !s_.is_poisoned() &&
                   (stretch.records != 0 || look_for_more()) && stretch.front(header, cumulative);
  if (may) [[likely]] {
    m.kind = header.kind;
    m.payload_in_block = false;
    m.block_count = 0;
    m.payload_size = header.payload;
    copy_from_record(m.payload, stretch.at + kRecordHeader, header.payload);
    stretch.pop(*ring_.header, header.size);  // D5, the commit
    A::store_relaxed(mine.bytes, cumulative);
    A::store_release(mine.items, stretch.items);
  }
  user_.leave_first();
  return may;
}

Status ReceiverEnd::try_receive(Incoming& m, std::int64_t lock_until) noexcept {
  if (plain_ && receive_plainly(m)) [[likely]] {
    lower_alarm();
    // relaxed: a sender can only sleep for room once a limit was given
    if ((A::load_relaxed(row_.max_items) | A::load_relaxed(row_.max_bytes)) != 0)
      Doorbell<>(row_.room, s_.asymmetric()).ring_futex();
    return Status::kOk;
  }
  if (closed_) return Status::kClosed;
  Status status = Status::kEmpty;
  if (leased_ && A::load_acquire(row_.returned) != 0) [[unlikely]] {
    status = take_returned(m, lock_until);
    if (status != Status::kEmpty) {
      lower_alarm();
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
  if (spin(until_ns, ready)) return;
  if (bell_kind_ != BellKind::kSocket || bell_fd_ < 0) {
    sleep(bell, until_ns, wait, ready);
    return;
  }
  // No flag is needed: the byte stands as long as the ring is not empty (D4). It may stand longer
  // while nobody watches, so that a receiver that does not sleep costs no system call.
  drain_if_empty(kBellToken);
  const std::int64_t end = slice_end(until_ns, wait.began);
  mark_asleep(wait);
  platform::FdEvents events;
  if (platform::poll_fd(bell_fd_, end, events) > 0 && events.hangup) hangup_ = true;
}

Status ReceiverEnd::receive_slice(Incoming& m, std::int64_t until_ns, Wait& wait) noexcept {
  look_for_hangup();
  Status gone = peer_gone(false);  // D7: first whether the other side is gone,
  const bool leased_out = leased_ && gone != Status::kOk && is_leased_elsewhere(s_, id_);  // D8
  Status status = try_receive(m, lock_end(until_ns, wait));  // then the ring
  if (status == Status::kContended)
    return platform::monotonic_ns() >= until_ns ? Status::kEmpty : Status::kSlice;
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
    if (enter(lock_end(until_ns, wait)) == Status::kOk) {
      const std::uint64_t head = A::load_acquire(row_.receiver.ring);
      found =
          open_end(head) && (A::load_acquire(ring_.header->next) != 0 ||
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
  // Who hands a leased message back, a reaper for one, need not have the descriptor.
  if (bell_kind_ == BellKind::kFutex || bell_fd_ < 0 || leased_) return Status::kFull;
  if (!lock_senders()) return Status::kContended;
  Doorbell<> bell(row_.data, s_.asymmetric());
  bell.arm();
  const bool token = (bell.look() & kBellToken) != 0;
  const bool quiet = is_empty() && !is_over();
  if (quiet && token) {
    bell.clear_token();
    platform::drain_token(bell_fd_, bell_kind_ == BellKind::kEventfd);
  } else if (!quiet && !token && bell_kind_ == BellKind::kEventfd) {
    bell.set_token();
    (void)platform::write_token(bell_fd_, true);
  }
  row_.sender.lock.release();
  return Status::kOk;
}

}  // namespace ipcbuf
