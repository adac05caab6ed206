// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/directory.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>

#include "ipcbuf/diagnosis.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/slice.hpp"
#include "ipcbuf/static_area.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::uint32_t kNoRow = UINT32_MAX;
constexpr std::uint64_t kNoId = UINT64_MAX;
constexpr std::uint32_t kFirstBits = 6;

std::uint64_t hash_of(const ChannelKey& key) noexcept {
  std::uint64_t words[sizeof key / 8];
  std::memcpy(words, &key, sizeof key);
  std::uint64_t h = 0x9E3779B97F4A7C15;
  for (const std::uint64_t word : words) {
    h = (h ^ word) * 0xBF58476D1CE4E5B9;
    h ^= h >> 29;
  }
  return h ^ h >> 32;
}

std::uint32_t max_bits(Segment& s) noexcept {
  return static_cast<std::uint32_t>(std::countr_zero(std::bit_ceil(s.constants().max_channels))) +
         1;
}

/// The table as its owner sees it.
struct Table {
  Atomic<std::uint32_t>* places;
  std::uint32_t mask;  // number of places - 1; 0 = there is none
};
Table table_of(Segment& s) noexcept { return {s.key_table(), (1U << directory_bits(s)) - 1}; }

bool has_a_key(ChannelRow& row) noexcept {
  return ChannelWord::unpack(A::load_acquire(row.state)).state == ChannelState::kActive &&
         (A::load_acquire(row.marks) & (kKeyed | kRemoved)) == kKeyed;
}

/// Calls `visit(place, value)` along the key's probe sequence until it answers true or a place
/// that was never used.
template <class Visit>
bool probe(Segment& s, const ChannelKey& key, Visit&& visit) noexcept {
  const Table table = table_of(s);
  if (table.mask == 0) return false;
  auto at = static_cast<std::uint32_t>(hash_of(key)) & table.mask;
  for (std::uint32_t steps = 0; steps <= table.mask; ++steps, at = (at + 1) & table.mask) {
    const std::uint32_t value = A::load_relaxed(table.places[at]);  // relaxed: W1
    if (visit(at, value)) return true;
    if (value == 0) return false;
  }
  return false;
}

/// The row of a key. False: the table contradicts the rows (J2, J3).
bool look_up(Segment& s, const ChannelKey& key, std::uint32_t& index) noexcept {
  const std::uint32_t high = s.channels_high();
  bool sound = true;
  index = kNoRow;
  probe(s, key, [&](std::uint32_t, std::uint32_t value) {
    if (value == 0 || value == kTombstone) return false;
    sound = value <= high && has_a_key(s.channel(value - 1));
    if (!sound) return true;
    if (!same_key(s.channel(value - 1).key, key)) return false;
    index = value - 1;
    return true;
  });
  return sound;
}
std::uint32_t find_row(Segment& s, const ChannelKey& key) noexcept {
  std::uint32_t index = kNoRow;
  if (look_up(s, key, index)) return index;
  rebuild_directory(s);
  if (!look_up(s, key, index)) (void)s.poison(__LINE__);
  return index;
}

void place_row(Segment& s, std::uint32_t index) noexcept {
  const bool placed = probe(s, s.channel(index).key, [&](std::uint32_t at, std::uint32_t value) {
    if (value != 0 && value != kTombstone) return false;
    auto& used = s.header().directory_used;
    if (value == 0) A::store_relaxed(used, A::load_relaxed(used) + 1);  // relaxed: W1
    A::store_relaxed(s.key_table()[at], index + 1);
    return true;
  });
  if (!placed) (void)s.poison(__LINE__);
}

/// True if the table takes one more key; `bits`: the size for which memory must be reserved.
bool is_roomy(Segment& s, std::uint32_t& bits) noexcept {
  const std::uint32_t now = directory_bits(s);
  const std::uint64_t used = A::load_acquire(s.header().directory_used);
  bits = now == 0 ? kFirstBits : std::min(now + 1, max_bits(s));
  return now != 0 && (used + 1) * 3 <= 2ULL << now;
}

/// Tombstones away; if that is not enough, twice the size. False: memory must be reserved first.
bool make_roomy(Segment& s, std::uint32_t reserved_bits) noexcept {
  std::uint32_t bits = 0;
  if (is_roomy(s, bits)) return true;
  if (bits > reserved_bits) return false;
  rebuild_directory(s);
  const std::uint64_t live = A::load_relaxed(s.header().directory_used);  // relaxed: W1
  const std::uint32_t now = directory_bits(s);
  // At most half full behind a rebuild, so that the next one is far.
  if (now == 0 || (live + 1) * 2 > 1ULL << now) {
    A::store_release(s.header().directory_bits, bits);
    rebuild_directory(s);
  }
  return true;
}

/// New keys are there: who waits for one looks again.
void announce_key(Segment& s) noexcept {
  A::fetch_add(s.header().directory_changes, 1);  // J5 release
  platform::futex_wake(&s.header().directory_changes, INT32_MAX);
}

/// Closes both ends of a removed channel. True if one was not closed yet.
bool close_removed(ChannelRow& row) noexcept {
  bool any = false;
  for (auto* end_state : {&row.sender_state(), &row.receiver_state()}) {
    for (const EndState from : {EndState::kOpen, EndState::kAwaited}) {
      auto state = static_cast<std::uint32_t>(from);
      any = A::compare_exchange(*end_state, state,
                                static_cast<std::uint32_t>(EndState::kClosed)) ||  // C4
            any;
    }
  }
  return any;
}

bool is_exclusive(const ChannelRow& row) noexcept {
  return row.type == ChannelType::kRecord && (row.flags & kSharedEnds) == 0;
}

Status differs(Failure& why, const char* what, std::uint64_t asked, std::uint64_t is) noexcept {
  why = {Status::kMismatch, 0, what};
  why.requested = asked;
  why.committed = is;
  return why.status;
}

/// Under the lock: what the request says is what the row is.
Status compare(Segment& s, ChannelRow& row, const JoinRequest& want, Failure& why) noexcept {
  if (row.type != want.type)
    return differs(why, "type", static_cast<std::uint64_t>(want.type),
                   static_cast<std::uint64_t>(row.type));
  if (row.type == ChannelType::kStatic) {
    const std::uint64_t length = area_length(s, row);
    return length == want.length ? Status::kOk : differs(why, "nbytes", want.length, length);
  }
  const bool leased = (row.flags & kLeased) != 0;
  if (want.lease && *want.lease != leased) return differs(why, "lease", *want.lease, leased);
  const bool shared = leased || (row.flags & kSharedEnds) != 0;
  if (want.shared && !leased && *want.shared != shared)
    return differs(why, "shared", *want.shared, shared);
  const std::uint32_t marks = A::load_relaxed(row.marks);  // relaxed: W1
  const std::uint64_t items = A::load_relaxed(row.max_items);
  if (want.max_items && (marks & kItemsGiven) != 0 && *want.max_items != items)
    return differs(why, "max_items", *want.max_items, items);
  const std::uint64_t bytes = A::load_relaxed(row.max_bytes);
  if (want.max_bytes && (marks & kBytesGiven) != 0 && *want.max_bytes != bytes)
    return differs(why, "max_bytes", *want.max_bytes, bytes);
  return Status::kOk;
}

void give_limits(ChannelRow& row, const JoinRequest& want) noexcept {
  // The mark last: a limit without it was given by a dead process, and is taken back.
  if (want.max_items) {
    A::store_relaxed(row.max_items, *want.max_items);
    A::fetch_or(row.marks, kItemsGiven);
  }
  if (want.max_bytes) {
    A::store_relaxed(row.max_bytes, *want.max_bytes);
    A::fetch_or(row.marks, kBytesGiven);
  }
}

Status join_entered(Segment& s, std::uint32_t id, const JoinRequest& want, SpareEntry& spare,
                    Failure& why) noexcept {
  ChannelRow& row = s.channel(index_of(id));
  if (const Status status = compare(s, row, want, why); status != Status::kOk) return status;
  HoldList& holds = hold_list(s, id, want.end);
  if (is_exclusive(row)) {
    if (!is_unheld(s, holds)) return Status::kBusyEnd;
    A::store_relaxed(want.end == End::kSender ? row.sender.owner : row.receiver.owner, 0);
  }
  const Status status = try_add_hold(s, holds, Hold{HoldKind::kProcess, s.token(), 1}, spare);
  if (status != Status::kOk) return status;
  give_limits(row, want);
  reopen_end(s, row, want.end);
  return Status::kOk;
}

/// A channel that is not there yet: a row of ours that nobody can find.
class Draft {
 public:
  explicit Draft(Segment& s) noexcept : s_(s) {}
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;
  ~Draft() {
    if (is_made()) destroy_channel(s_, index_of(id()));
  }
  [[nodiscard]] bool is_made() const noexcept { return id_ != kNoId; }

  [[nodiscard]] Status make(const JoinRequest& want, Failure& why) {
    ChannelOptions options;
    options.type = want.type;
    options.shared = want.shared.value_or(false);
    options.lease = want.lease.value_or(false);
    options.max_items = want.max_items.value_or(0);
    options.max_bytes = want.max_bytes.value_or(0);
    std::uint32_t id = 0;
    if (const Status status = draft_channel(s_, options, id, why); status != Status::kOk)
      return status;
    id_ = id;
    ChannelRow& row = s_.channel(index_of(id));
    row.key = want.key;
    A::store_relaxed(row.marks, kKeyed | (want.max_items ? kItemsGiven : 0) |
                                    (want.max_bytes ? kBytesGiven : 0));
    A::store_relaxed(want.end == End::kSender ? row.receiver_state() : row.sender_state(),
                     static_cast<std::uint32_t>(EndState::kAwaited));
    A::store_relaxed(row.value, want.value);
    if (want.type != ChannelType::kStatic) return Status::kOk;
    A::store_relaxed(row.value, 0);
    return make_area(s_, id, want.length, why);
  }

  /// Under the lock, which finds no such key in a table with room.
  [[nodiscard]] std::uint32_t commit(End end) noexcept {
    SpareEntry none(s_);
    const std::uint32_t made = id();
    (void)try_add_hold(s_, hold_list(s_, made, end), Hold{HoldKind::kProcess, s_.token(), 1}, none);
    place_row(s_, index_of(made));
    activate_channel(s_, made);
    id_ = kNoId;
    return made;
  }

 private:
  [[nodiscard]] std::uint32_t id() const noexcept { return static_cast<std::uint32_t>(id_); }

  Segment& s_;
  std::uint64_t id_ = kNoId;
};

/// The row's id under the lock; kNoId if there is none.
std::uint64_t find_id(Segment& s, const ChannelKey& key) noexcept {
  const std::uint32_t index = find_row(s, key);
  return index == kNoRow ? kNoId : channel_id(index, s.channel(index));
}

/// Buries the dead among who held the channel, and the channel if nobody is left. True: there were
/// some.
bool bury_holders(Segment& s, std::uint32_t id) {
  ChannelRow& row = s.channel(index_of(id));
  bool any = reap_dead_holders(s, row.sender_holds);
  any = reap_dead_holders(s, row.receiver_holds) || any;
  settle_channel(s, index_of(id));  // its last user may have died behind its hold, before settling
  return any;
}

/// False: nobody alive holds the channel. The dead are buried then, and the channel with them.
bool has_users(Segment& s, std::uint32_t id) {
  ChannelRow& row = s.channel(index_of(id));
  if (has_living_holder(s, row.sender_holds) || has_living_holder(s, row.receiver_holds))
    return true;
  (void)bury_holders(s, id);
  return false;
}

std::int64_t one_slice() noexcept { return platform::monotonic_ns() + kShortSlice; }

}  // namespace

ChannelKey key_of(std::int64_t number) noexcept {
  ChannelKey key{};
  key.kind = KeyKind::kInt;
  key.length = sizeof number;
  std::memcpy(key.text, &number, sizeof number);
  return key;
}

ChannelKey key_of(std::string_view text) noexcept {
  ChannelKey key{};
  key.kind = KeyKind::kStr;
  key.length = static_cast<std::uint8_t>(std::min<std::size_t>(text.size(), kMaxKey));
  std::memcpy(key.text, text.data(), key.length);
  return key;
}

bool same_key(const ChannelKey& a, const ChannelKey& b) noexcept {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

DirectoryLock::DirectoryLock(Segment& s, std::int64_t until_ns) noexcept
    : s_(s),
      held_(s.header().directory_lock.acquire(
          s.token(), until_ns, [&](Token t) { return s.is_dead(t); },
          [&] {
            A::fetch_add(s.header().takeovers, 1);
            rebuild_directory(s);
            announce_key(s);  // the dead may have made one
          })) {}

DirectoryLock::~DirectoryLock() {
  if (held_) s_.header().directory_lock.release();
}

void rebuild_directory(Segment& s) noexcept {
  const Table table = table_of(s);
  const std::uint32_t high = s.channels_high();
  for (std::uint32_t i = 0; table.mask != 0 && i <= table.mask; ++i)
    A::store_relaxed(table.places[i], 0);  // relaxed: W1
  A::store_relaxed(s.header().directory_used, 0);
  for (std::uint32_t i = 0; i < high; ++i) {
    ChannelRow& row = s.channel(i);
    const std::uint32_t marks = A::load_acquire(row.marks);
    if (ChannelWord::unpack(A::load_acquire(row.state)).state != ChannelState::kActive ||
        (marks & kKeyed) == 0)
      continue;
    if ((marks & kRemoved) != 0) {
      if (close_removed(row)) wake_channel(s, row);
      continue;
    }
    // Limits of who died before they counted.
    if ((marks & kItemsGiven) == 0) A::store_relaxed(row.max_items, 0);
    if ((marks & kBytesGiven) == 0) A::store_relaxed(row.max_bytes, 0);
    place_row(s, i);
  }
}

namespace {

void drop_place(Segment& s, std::uint32_t index) noexcept {
  const Table table = table_of(s);
  const bool found = probe(s, s.channel(index).key, [&](std::uint32_t at, std::uint32_t value) {
    if (value != index + 1) return false;
    A::store_relaxed(table.places[at], kTombstone);  // relaxed: W1
    // In front of a place that was never used nothing is looked for behind a tombstone.
    auto& used = s.header().directory_used;
    while (A::load_relaxed(table.places[at]) == kTombstone &&
           A::load_relaxed(table.places[(at + 1) & table.mask]) == 0) {
      A::store_relaxed(table.places[at], 0);
      A::store_relaxed(used, A::load_relaxed(used) - 1);
      at = (at - 1) & table.mask;
    }
    return true;
  });
  if (!found) rebuild_directory(s);
}

}  // namespace

std::uint32_t directory_bits(Segment& s) noexcept {
  const std::uint32_t bits = A::load_acquire(s.header().directory_bits);
  return bits <= max_bits(s) ? bits : 0;
}

std::uint32_t directory_row(Segment& s, const ChannelKey& key) noexcept {
  std::uint32_t index = kNoRow;
  return look_up(s, key, index) && index != kNoRow ? index + 1 : 0;
}

void forget_key(Segment& s, std::uint32_t index) noexcept {
  if ((A::load_acquire(s.channel(index).marks) & (kKeyed | kRemoved)) == kKeyed)
    drop_place(s, index);
}

void reopen_end(Segment&, ChannelRow& row, End end) noexcept {
  if ((A::load_acquire(row.marks) & (kKeyed | kRemoved)) != kKeyed) return;
  A::store_release(end == End::kSender ? row.sender_state() : row.receiver_state(),
                   static_cast<std::uint32_t>(EndState::kOpen));
}

void recover_directory_lock(Segment& s) noexcept {
  const Token owner = s.header().directory_lock.owner();
  if (owner != 0 && s.is_dead(owner)) const DirectoryLock lock(s, platform::kForever);
}

Status join_channel_slice(Segment& s, const JoinRequest& want, std::uint32_t& id, Failure& why) {
  Draft draft(s);
  SpareEntry spare(s);
  std::uint64_t seen = kNoId;  // found, and held by somebody alive
  for (;;) {
    if (s.is_poisoned()) return why.status = s.fault();
    std::uint32_t bits = 0;
    if (draft.is_made() && !is_roomy(s, bits)) {  // J4
      if (const int error = s.reserve(s.constants().directory, 4ULL << bits); error != 0)
        return RunHeap(s).refuse(error, 4ULL << bits, why);
    }
    Status status = Status::kNotFound;
    std::uint64_t there = kNoId;
    {
      const DirectoryLock lock(s, one_slice());
      if (!lock.is_held()) return Status::kSlice;
      there = find_id(s, want.key);
      if (there != kNoId && there == seen) {
        id = static_cast<std::uint32_t>(there);
        status = join_entered(s, id, want, spare, why);
      } else if (there == kNoId && draft.is_made() && !s.is_poisoned() && make_roomy(s, bits)) {
        id = draft.commit(want.end);
        status = Status::kExists;
      }
    }
    const auto found = static_cast<std::uint32_t>(there);
    switch (status) {
      case Status::kExists:
        announce_key(s);
        [[fallthrough]];
      case Status::kOk:
        s.note_endpoint(id, want.end);
        return Status::kOk;
      case Status::kNotFound:
        if (there == kNoId && !draft.is_made()) {
          status = draft.make(want, why);
          if (status != Status::kOk) return why.status = status;
        } else if (there != kNoId && has_users(s, found)) {
          seen = there;
        }
        break;
      case Status::kFull:
        status = spare.make_room(hold_list(s, found, want.end));
        if (status == Status::kTooMany) {
          why = {status, 0, "shared entries"};
          why.requested = s.constants().max_entries;
        }
        if (status != Status::kOk) return why.status = status;
        break;
      case Status::kBusyEnd:
      case Status::kMismatch:  // with the dead the channel may go, too
        if (bury_holders(s, found)) break;
        why.status = status;
        if (status == Status::kBusyEnd) {
          const ChannelRow& row = s.channel(index_of(found));
          Token holder = any_holder(s, hold_list(s, found, want.end));
          const Token owner =
              A::load_acquire((want.end == End::kSender ? row.sender : row.receiver).owner);
          if (owner != 0) holder = owner;
          if (holder == 0) break;  // it left meanwhile
          why.requested = pid_of(s, holder);
        }
        return status;
      default:
        return why.status = status;
    }
  }
}

Status find_channel_slice(Segment& s, const ChannelKey& key, std::uint32_t& id) {
  for (;;) {
    if (s.is_poisoned()) return s.fault();
    std::uint64_t found = kNoId;
    {
      const DirectoryLock lock(s, one_slice());
      if (!lock.is_held()) return Status::kSlice;
      found = find_id(s, key);
    }
    if (found == kNoId) return Status::kNotFound;
    id = static_cast<std::uint32_t>(found);
    if (has_users(s, id)) return Status::kOk;
  }
}

Status wait_for_key_slice(Segment& s, const ChannelKey& key, std::int64_t until_ns, Wait& wait) {
  const std::uint32_t seen = A::load_acquire(s.header().directory_changes);  // J5 acquire
  std::uint32_t id = 0;
  const Status status = find_channel_slice(s, key, id);
  if (status != Status::kNotFound) return status;
  if (platform::monotonic_ns() >= until_ns) return Status::kEmpty;
  platform::futex_wait(&s.header().directory_changes, seen, slice_end(until_ns, wait.began));
  return Status::kSlice;
}

Status remove_channel_slice(Segment& s, const ChannelKey& key) {
  std::uint32_t id = 0;
  {
    const DirectoryLock lock(s, one_slice());
    if (!lock.is_held()) return Status::kSlice;
    const std::uint64_t found = find_id(s, key);
    if (s.is_poisoned()) return s.fault();
    if (found == kNoId) return Status::kNotFound;
    id = static_cast<std::uint32_t>(found);
    ChannelRow& row = s.channel(index_of(id));
    A::fetch_or(row.marks, kRemoved);  // the commit
    drop_place(s, index_of(id));
    close_removed(row);
    wake_channel(s, row);
  }
  bury_holders(s, id);  // if only the dead had it, nobody else would free it
  return Status::kOk;
}

std::uint64_t count_users(Segment& s, std::uint32_t id, End end) {
  HoldList& holds = hold_list(s, id, end);
  reap_dead_holders(s, holds);
  return count_holds(s, holds);
}

std::vector<ChannelInfo> list_channels(Segment& s) {
  reap_all(s);
  std::vector<ChannelInfo> out;
  const std::uint32_t high = s.channels_high();
  for (std::uint32_t i = 0; i < high; ++i) {
    ChannelRow& row = s.channel(i);
    const std::uint64_t word = A::load_acquire(row.state);
    const ChannelWord state = ChannelWord::unpack(word);
    if (state.state != ChannelState::kActive) continue;
    ChannelInfo info;
    info.id = make_id(i, state.generation);
    if ((A::load_acquire(row.marks) & (kKeyed | kRemoved)) == kKeyed) info.key = row.key;
    info.type = row.type;
    info.shared = (row.flags & kSharedEnds) != 0;
    info.senders = count_holds(s, row.sender_holds);
    info.receivers = count_holds(s, row.receiver_holds);
    const std::uint64_t sent = A::load_acquire(row.sender.items);
    const std::uint64_t received = A::load_acquire(row.receiver.items);
    const auto pending = static_cast<std::uint32_t>(sent) - static_cast<std::uint32_t>(received);
    info.messages = pending < 1U << 31 ? pending : 0;  // the two were read at different moments
    const std::uint64_t in = A::load_acquire(row.sender.bytes);
    const std::uint64_t out_bytes = A::load_acquire(row.receiver.bytes);
    info.bytes = in > out_bytes ? in - out_bytes : 0;
    if (info.type == ChannelType::kStatic) info.bytes = area_length(s, row);
    info.max_items = A::load_acquire(row.max_items);
    info.max_bytes = A::load_acquire(row.max_bytes);
    if (A::load_acquire(row.state) == word) out.push_back(info);  // else another's by now
  }
  return out;
}

}  // namespace ipcbuf
