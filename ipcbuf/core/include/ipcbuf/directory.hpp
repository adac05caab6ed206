// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// directory.hpp - channels by the keys that users chose: made or joined, found, counted, removed.
//
// Overview
//   A key is an int or a short text. The truth is ChannelRow::key of the active rows; the
//   directory is an open-addressing table of row numbers over the keys' hashes, a cache. The
//   first comer at a key makes the channel; whoever comes later joins it. The channel goes with
//   its last user at either end, or when its key is removed and the last of its users leaves.
//
// Invariants (all under Header::directory_lock)
//   J1  A row becomes active with a key, and ceases to be active, under the lock only. So what
//       is found active there stays so until the lock is released, and a hold that is added
//       meanwhile keeps it: nobody joins a channel that is being destroyed.
//   J2  Of the active rows that are kKeyed and not kRemoved no two have the same key, and each
//       stands in the table in the probe sequence of its key.
//   J3  Every other place of the table is 0 (never used) or kTombstone.
//   J4  The table's memory is reserved before its size is stored, outside the lock.
//
// Steps, each of which may be the last of who takes it
//   Make:   draft the row outside the lock (kClaimed, ours) -> our hold -> place -> state :=
//           kActive (the commit). Drafts of the dead are destroyed by the reaper.
//   Join:   owner := 0 (an exclusive end) -> our hold (the commit) -> limits -> state := kOpen.
//   Settle: closes ends without holds; without any hold: state := kDestroying (the commit) ->
//           place := kTombstone. The emptying happens outside the lock.
//   Remove: marks |= kRemoved (the commit) -> place := kTombstone -> both ends closed, all woken.
//   Whoever takes the lock over from the dead rebuilds the table from the rows, and completes
//   what was removed.
//
// Pairs
//   W1  directory_lock carries the table, `key`, `marks` and the limits.
//   J5  directory_changes  announce_key -> wait_for_key_slice   carries "look again"
//
// Locks: this one before all others. Under it nobody is buried and nothing is reserved.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/segment.hpp"

namespace ipcbuf {

inline constexpr std::uint32_t kTombstone = UINT32_MAX;

[[nodiscard]] ChannelKey key_of(std::int64_t number) noexcept;
/// The text has 1 to kMaxKey bytes.
[[nodiscard]] ChannelKey key_of(std::string_view text) noexcept;
[[nodiscard]] bool same_key(const ChannelKey& a, const ChannelKey& b) noexcept;

/// Holds Header::directory_lock for its lifetime; rebuilds the table after a take-over.
class DirectoryLock {
 public:
  DirectoryLock(Segment& segment, std::int64_t until_ns) noexcept;
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  ~DirectoryLock();
  [[nodiscard]] bool is_held() const noexcept { return held_; }

 private:
  Segment& s_;
  bool held_;
};

// ---- under the lock ----
/// The table anew from the rows.
void rebuild_directory(Segment& segment) noexcept;
/// Takes the row's place out of the table, if it has one.
void forget_key(Segment& segment, std::uint32_t index) noexcept;
/// An end that got a hold is open (again), unless the channel's key was removed.
void reopen_end(Segment& segment, ChannelRow& row, End end) noexcept;

/// The table has 2^this places; 0 = there is none, or the header's number is impossible.
[[nodiscard]] std::uint32_t directory_bits(Segment& segment) noexcept;
/// Number + 1 of the row that the table has for a key, 0 if none; changes nothing.
[[nodiscard]] std::uint32_t directory_row(Segment& segment, const ChannelKey& key) noexcept;

// ---- outside ----
/// Takes the lock over from a dead owner, if there is one.
void recover_directory_lock(Segment& segment) noexcept;

struct JoinRequest {
  ChannelKey key{};
  ChannelType type = ChannelType::kRecord;
  End end = End::kSender;
  // What is not given is as it is; the first comer's is exclusive and unbounded.
  std::optional<bool> shared;
  std::optional<bool> lease;  // what is leased is shared
  std::optional<std::uint64_t> max_items;
  std::optional<std::uint64_t> max_bytes;
  std::uint64_t length = 0;  // kStatic
  std::uint64_t value = 0;   // kAtomic, for who makes it
};

/// Makes or joins the channel of a key; this process holds the end (one object) on kOk.
/// kSlice: the lock is busy, look for signals and call again. kMismatch: `why.reason` says what,
/// `why.requested` what was asked, `why.committed` what it is. kBusyEnd: `why.requested` is the
/// process id of the holder.
[[nodiscard]] Status join_channel_slice(Segment& segment, const JoinRequest& request,
                                        std::uint32_t& id, Failure& why);
/// The channel of a key that a living process holds. kOk, kNotFound or kSlice.
[[nodiscard]] Status find_channel_slice(Segment& segment, const ChannelKey& key, std::uint32_t& id);
/// Waits a slice for the channel of a key. kOk, kEmpty (time is up), kSlice.
[[nodiscard]] Status wait_for_key_slice(Segment& segment, const ChannelKey& key,
                                        std::int64_t until_ns, Wait& wait);
/// Frees the key; its channel ends for its users. kOk, kNotFound or kSlice.
[[nodiscard]] Status remove_channel_slice(Segment& segment, const ChannelKey& key);

/// Handles of living processes at an end, those on their way included. Buries the dead.
[[nodiscard]] std::uint64_t count_users(Segment& segment, std::uint32_t id, End end);

struct ChannelInfo {
  std::uint32_t id = 0;
  ChannelKey key{};  // kNone: an anonymous channel, or a removed one
  ChannelType type = ChannelType::kRecord;
  bool shared = false;
  std::uint64_t senders = 0;  // of a static segment or an atomic cell its users
  std::uint64_t receivers = 0;
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;  // of messages; of a static segment its length
  std::uint64_t max_items = 0;
  std::uint64_t max_bytes = 0;
};
/// Every channel, one after the other: a snapshot of each, not of all together.
[[nodiscard]] std::vector<ChannelInfo> list_channels(Segment& segment);

}  // namespace ipcbuf
