// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// channel.hpp - a chain of rings with a doorbell, liveness and an end.
//
// Overview
//   Small messages lie in the ring; a large one is a block whose descriptor lies there. A
//   sender that finds its ring full links a larger one; a receiver that has emptied a ring
//   with a successor moves on and frees it. So an unbounded channel grows with its backlog,
//   and a bounded one is the same with limits on items or bytes.
//
//   An exclusive end belongs to the first process that uses it. A shared end is used under an
//   owner-word lock, so the order is one for all.
//
// Order rules (a kill between any two steps must be harmless)
//   C1  Link: allocate (mine) -> initialise -> holder := channel -> store `next` (the commit).
//   C2  Move on: creator := me -> receiver.ring := next (the commit) -> free the old ring.
//       A ring that its channel does not reach is garbage of its creator.
//   D5  Receive: holder := me for every block -> read word (the commit).
//   E1  Close: closed_ := true -> nobody of ours inside -> drop our hold. Whoever comes inside
//       looks at closed_ then.
//   D7  End: look whether the other side is gone, then at the ring; ended only if it was gone
//       first and the ring was empty after.
//
// Pairs
//   C1  next           link -> move_on          carries the new ring's header
//   C3  EndRow::items  publish -> wait_data     carries "something is there" (with D1)
//   C4  end_state      close, reap -> peer_gone carries "nothing more will be published"
//   C5  end_state      shut_down, of the receiver -> is_shut_down, by a receiver itself: the same
//
// Locks: directory_lock before receiver.lock before sender.lock before heap_lock. Under a lock no
// allocation, no copy to or from pages that may be untouched but the ring itself, no Python.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/lease.hpp"
#include "ipcbuf/ring.hpp"
#include "ipcbuf/segment.hpp"
#include "ipcbuf/sole_user.hpp"
#include "ipcbuf/spin_claim.hpp"
#include "ipcbuf/stretch.hpp"

namespace ipcbuf {

struct ChannelOptions {
  bool shared = false;
  bool lease = false;  // see lease.hpp; such ends are shared
  BellKind bell = BellKind::kFutex;
  std::uint64_t max_items = 0;
  std::uint64_t max_bytes = 0;
  ChannelType type = ChannelType::kRecord;
};

/// A row in state kClaimed, ours, filled and empty of holds; of a record channel with its first
/// ring. `activate` is its commit, `destroy_channel` takes it back.
[[nodiscard]] Status draft_channel(Segment& segment, const ChannelOptions& options,
                                   std::uint32_t& id, Failure& why);
void activate_channel(Segment& segment, std::uint32_t id) noexcept;
/// Makes a channel; this process holds both ends (one endpoint object each).
[[nodiscard]] Status create_channel(Segment& segment, const ChannelOptions& options,
                                    std::uint32_t& id, Failure& why);
/// Another endpoint object for an end that is held already, by us or by `transit` for us.
[[nodiscard]] Status open_channel(Segment& segment, std::uint32_t id, End end, Token transit,
                                  ChannelType type = ChannelType::kRecord);
/// A hold for a handle on its way to another process, among `parcels` (parcels.hpp) if not 0.
[[nodiscard]] Status hold_in_transit(Segment& segment, std::uint32_t id, End end,
                                     Token parcels = 0);
/// Gives up a hold; closes the end with its last, and the channel with both ends.
void drop_endpoint_hold(Segment& segment, std::uint32_t id, End end, HoldKind kind, Token token);
/// Closes ends without holders; empties and frees the channel if nobody holds it. Takes
/// directory_lock: only under it a channel ceases to be active (J1 of directory.hpp).
void settle_channel(Segment& segment, std::uint32_t index);
/// Empties and frees a channel whose state word is (kClaimed or kDestroying, ours).
void destroy_channel(Segment& segment, std::uint32_t index);
/// What the lock of an end guards, after its owner died.
void recover_sender(Segment& segment, ChannelRow& row, std::uint32_t id) noexcept;
void recover_receiver(Segment& segment, ChannelRow& row, std::uint32_t id) noexcept;
/// Takes the end's lock over from a dead owner, if there is one.
void recover_end_lock(Segment& segment, std::uint32_t index, End end) noexcept;
void wake_channel(Segment& segment, ChannelRow& row) noexcept;
/// The ring at `offset` if it is one of this channel; capacity checked against its block.
[[nodiscard]] bool open_ring(Segment& segment, std::uint64_t offset, std::uint32_t id,
                             Ring<>& out) noexcept;
/// A ring block, initialised and still ours (C1, first two steps).
[[nodiscard]] Status make_ring(Segment& segment, std::uint32_t id, std::uint32_t capacity,
                               std::uint64_t& offset, Failure& why);
/// From ours to the channel's (C1, third step). Unreached rings are their creator's garbage.
void give_ring(Segment& segment, std::uint64_t offset, std::uint32_t id) noexcept;
[[nodiscard]] std::uint32_t channel_id(std::uint32_t index, ChannelRow& row) noexcept;

struct Outgoing {
  RecordKind kind = RecordKind::kRaw;
  bool payload_in_block = false;
  const void* payload = nullptr;  // at most kMaxInline bytes
  std::uint32_t payload_size = 0;
  std::uint32_t block_count = 0;
  BlockRef blocks[kMaxBlocks];
  // On a leased channel the message is one block and nothing else, which says this of itself:
  std::uint8_t tag = 0;
  std::uint8_t buffers = 0;

  /// What the message counts against max_bytes.
  [[nodiscard]] std::uint64_t weight() const noexcept {
    std::uint64_t sum = record_size(payload_size, block_count);
    for (std::uint32_t i = 0; i < block_count; ++i) sum += blocks[i].length;
    return sum;
  }
};

struct Incoming {
  RecordKind kind = RecordKind::kRaw;
  bool payload_in_block = false;
  std::uint32_t payload_size = 0;
  std::uint32_t block_count = 0;
  std::uint64_t lease = 0;  // of a leased message: its word (Lease)
  bool is_redelivered = false;
  BlockRef blocks[kMaxBlocks];  // held by this process now
  alignas(16) std::byte payload[kMaxInline];
};

/// A descriptor that the bridge makes readable (bridge.hpp). Under the bridge's mutex, but for
/// `fd`, which a fork in the middle of a wait sets to -1.
struct Alarm {
  int fd = -1;
  bool raised = false;
};
struct BridgeWatch;

/// One blocking call. Several threads may wait in one endpoint, so it is the caller's.
struct Wait {
  bool slept = false;   // on the futex: D2 is due
  bool marked = false;  // the bell's row names us as asleep
  std::int64_t began = 0;
};

// ---- hints for people: who sleeps at a bell, who left an end last. Never trusted by code. ----
void mark_sleeper(BellRow& bell, Token me, std::int64_t since_ns) noexcept;
void unmark_sleeper(BellRow& bell, Token me) noexcept;
void mark_left(EndRow& end, std::uint32_t pid) noexcept;

/// What both kinds of endpoint have: a channel, a seat at one end, and how to wait.
class Endpoint {
 public:
  Endpoint(Segment& segment, std::uint32_t id, End end) noexcept;
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  ~Endpoint();

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] bool rings_socket() const noexcept { return bell_kind_ == BellKind::kSocket; }
  [[nodiscard]] bool is_shared() const noexcept { return shared_; }
  [[nodiscard]] bool is_leased() const noexcept { return leased_; }
  [[nodiscard]] std::uint32_t pending() noexcept;
  [[nodiscard]] std::uint64_t max_items() const noexcept {
    return Atomics::load_relaxed(row_.max_items);  // relaxed: given once
  }
  [[nodiscard]] bool is_full() noexcept;
  /// How many messages were ever published here, and taken, modulo 2**32.
  [[nodiscard]] std::uint32_t sent() noexcept {
    return static_cast<std::uint32_t>(Atomics::load_acquire(row_.sender.items));
  }
  [[nodiscard]] std::uint32_t received() noexcept {
    return static_cast<std::uint32_t>(Atomics::load_acquire(row_.receiver.items));
  }
  [[nodiscard]] int bell_fd() const noexcept { return bell_fd_; }
  void set_bell_fd(int fd) noexcept { bell_fd_ = fd; }
  /// Gives the end up; the last one closes it for the other side. Once.
  void close();
  [[nodiscard]] bool is_closed() const noexcept { return closed_; }
  /// After a blocking call, whatever its outcome (D2).
  void finish_wait(const Wait& wait) noexcept;

  // ---- for who waits at many ends (wait_set.hpp, bridge.hpp) ----
  /// A receive or send would not wait: a message or its end, room or no receiver, or we closed it.
  [[nodiscard]] bool is_ready() noexcept;
  /// Rung by its futex; else by the descriptor that came with the channel.
  [[nodiscard]] bool has_futex() const noexcept {
    return end_ == End::kSender || bell_kind_ != BellKind::kSocket || bell_fd_ < 0;
  }
  [[nodiscard]] BellRow& bell_row() noexcept {
    return end_ == End::kSender ? row_.room : row_.data;
  }
  [[nodiscard]] Segment& segment() noexcept { return s_; }
  [[nodiscard]] End side() const noexcept { return end_; }
  /// The processes whose death would end the other side; none if we hold it ourselves.
  void list_peers(std::vector<Token>& out);
  /// The kernel's word that the last copy of the other side's descriptor is gone.
  void look_for_hangup() noexcept;
  /// The same, unless it was asked a few microseconds ago: asking costs as much as a send.
  void glance_at_hangup() noexcept;

 protected:
  [[nodiscard]] EndRow& mine() noexcept {
    return end_ == End::kSender ? row_.sender : row_.receiver;
  }
  [[nodiscard]] EndRow& other() noexcept {
    return end_ == End::kSender ? row_.receiver : row_.sender;
  }
  [[nodiscard]] Atomic<std::uint32_t>& my_state() noexcept { return bell_row().end_state; }
  [[nodiscard]] Atomic<std::uint32_t>& other_state() noexcept {
    return end_ == End::kSender ? row_.receiver_state() : row_.sender_state();
  }
  /// Its users left or died; an end that is still awaited is not gone.
  [[nodiscard]] static bool is_gone(const Atomic<std::uint32_t>& end_state) noexcept;
  /// We are a receiver of a channel that nobody sends through any more, whoever holds its ends.
  [[nodiscard]] bool is_shut_down() noexcept;
  /// The right to use this end now: the lock of a shared one, the claim of an exclusive one.
  [[nodiscard]] Status enter(std::int64_t until_ns) noexcept;
  [[nodiscard]] Status wait_for_lock(Token me, std::int64_t until_ns) noexcept;
  void leave() noexcept;
  /// What `ring_` is while it is none: the capacities differ, so whatever the offset, it is opened.
  [[nodiscard]] static Ring<> no_ring() noexcept;
  /// Makes `ring_` the ring at `offset`, of this channel and of this end. False: it is none.
  [[nodiscard]] bool open_end(std::uint64_t offset) noexcept;
  /// kOk: the other side may still move; kEnded, kBroken: it will not (D7, first look).
  [[nodiscard]] Status peer_gone(bool prove) noexcept;
  [[nodiscard]] static std::int64_t lock_end(std::int64_t until_ns, Wait& wait) noexcept;
  bool let_gather() noexcept;
  template <class Ready>
  [[nodiscard]] bool spin(std::int64_t until_ns, Ready&& ready) noexcept;
  template <class Ready>
  void sleep(Doorbell<>& bell, std::int64_t until_ns, Wait& wait, Ready&& ready) noexcept;
  void mark_asleep(Wait& wait) noexcept;
  /// After a call that may have changed what `is_ready` says.
  void lower_alarm() noexcept;

  Segment& s_;
  ChannelRow& row_;
  const std::uint32_t id_;
  const End end_;
  const bool shared_;
  const bool leased_;
  const bool plain_;  // exclusive, and rung by its futex alone
  const BellKind bell_kind_;
  int bell_fd_ = -1;
  std::atomic<bool> closed_ = false;
  std::atomic<bool> hangup_ = false;
  std::atomic<std::int64_t> looked_at_ = 0;  // at the descriptor, for a hang-up; monotonic ns
  SoleUser<> user_;                          // of an exclusive end
  Token owned_ = 0;                          // inside: us, once the end was found to be ours
  std::atomic<std::uint64_t> wanted_ = 0;    // sender: the weight that last found no room
  Ring<> ring_ = no_ring();                  // as last opened
  Stretch<> stretch_;                        // of a plain end, on `ring_`; inside
  std::uint64_t ring_offset_ = 0;

 private:
  friend class Bridge;
  // For those who poll; `watch_` and `alarm_` under the bridge's mutex.
  std::atomic<bool> watched_ = false;  // ever
  std::atomic<bool> alarmed_ = false;  // our descriptor reads ready
  BridgeWatch* watch_ = nullptr;
  Alarm alarm_;
  // Estimates that all threads here share; what one of them overwrites does no harm.
  std::atomic<std::int64_t> spin_ns_;
  std::atomic<std::uint32_t> spin_pause_ = 0;
};

class SenderEnd : public Endpoint {
 public:
  SenderEnd(Segment& segment, std::uint32_t id) noexcept : Endpoint(segment, id, End::kSender) {}

  /// One attempt that does not wait for room. The message's blocks are the channel's on kOk.
  [[nodiscard]] Status try_send(const Outgoing& message, std::int64_t lock_until, Failure& why);
  /// One attempt and at most one slice of waiting. kSlice: look for signals and call again.
  [[nodiscard]] Status send_slice(const Outgoing& message, std::int64_t until_ns, Failure& why,
                                  Wait& wait);
  /// Room for the message that was refused last, else for any; or nobody is left to receive.
  [[nodiscard]] bool may_send() noexcept;
  /// Ends the channel for everybody: nothing more is sent, and receivers get what is in it and then
  /// the end. A kill in between may leave it ended at one side; calling again mends that.
  [[nodiscard]] Status shut_down(std::int64_t lock_until) noexcept;
  /// True if a small message would not have to wait.
  [[nodiscard]] bool has_room() noexcept { return has_room(kRecordHeader); }

 private:
  [[nodiscard]] Status send_entered(const Outgoing& message, std::uint64_t& spare_ring,
                                    std::uint32_t& wanted) noexcept;
  [[nodiscard]] bool send_plainly(const Outgoing& message) noexcept;
  [[nodiscard]] Status send_in_new_ring(const Outgoing& message, std::int64_t lock_until,
                                        std::uint32_t wanted, Failure& why);
  void link_ring(std::uint64_t spare_ring, RingWord position) noexcept;
  void ring_bell_entered() noexcept;
  [[nodiscard]] bool has_room(std::uint64_t weight) noexcept;
  [[nodiscard]] bool has_room_entered(std::uint64_t weight) noexcept;
  [[nodiscard]] bool looks_for_room(std::uint64_t weight) noexcept;

  void renew_stretch(const Ring<>& ring, const RingWriter<>& writer) noexcept;

  // Inside an exclusive end: the limit, and the receiver's count as we saw it last.
  std::uint64_t limit_ = 0;
  std::uint32_t received_seen_ = 0;
};

class ReceiverEnd : public Endpoint {
 public:
  ReceiverEnd(Segment& segment, std::uint32_t id) noexcept
      : Endpoint(segment, id, End::kReceiver) {}

  [[nodiscard]] Status try_receive(Incoming& message, std::int64_t lock_until) noexcept;
  [[nodiscard]] Status receive_slice(Incoming& message, std::int64_t until_ns, Wait& wait) noexcept;
  /// Waits a slice for a message without taking it. kOk: one is there, or the end is.
  [[nodiscard]] Status poll_slice(std::int64_t until_ns, Wait& wait) noexcept;
  /// Makes the descriptor level-triggered from now on (D4). kFull: this channel has none.
  /// kContended: a sender is stopped in the middle of a message; call again.
  [[nodiscard]] Status arm() noexcept;
  /// A message is there, or the end.
  [[nodiscard]] bool may_receive() noexcept;

 private:
  [[nodiscard]] bool receive_plainly(Incoming& message) noexcept;
  [[nodiscard]] bool look_for_more() noexcept;
  [[nodiscard]] Status receive_entered(Incoming& message) noexcept;
  [[nodiscard]] Status move_on(std::uint64_t head, std::uint64_t next) noexcept;
  [[nodiscard]] Status take_blocks(Incoming& message) noexcept;
  [[nodiscard]] Status take_returned(Incoming& message, std::int64_t lock_until) noexcept;
  [[nodiscard]] Status wait_leases(std::int64_t until_ns, Wait& wait) noexcept;
  [[nodiscard]] bool has_data() noexcept;
  [[nodiscard]] bool is_over() noexcept;
  [[nodiscard]] bool is_empty() noexcept;
  [[nodiscard]] bool lock_senders() noexcept;
  void drain_if_empty(std::uint32_t flags) noexcept;
  void wait_data(std::int64_t until_ns, Wait& wait) noexcept;

  std::uint32_t streak_ = 0;  // inside a plain end: looks in a row that found little

  // Of a leased channel, under the end's lock: the oldest returned messages as last found.
  static constexpr std::uint32_t kKnown = 32;
  ReturnedMessage known_[kKnown];
  std::uint32_t known_count_ = 0;
  std::uint32_t known_next_ = 0;
  std::uint32_t known_at_ = 0;  // give_backs when they were found
};

}  // namespace ipcbuf
