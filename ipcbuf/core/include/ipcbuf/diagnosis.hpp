// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// diagnosis.hpp - what a segment's channels look like to a person: who holds them, who waits.
//
// Overview
//   Read while others work, without a lock and without a store, so neighbouring fields may be of
//   different moments. Every field is checked before it is used: a garbled row gives odd lines in
//   a report and nothing worse.
#pragma once

#include <cstdint>
#include <vector>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// A process that holds an end.
struct HolderDiagnosis {
  HoldKind kind;        // kTransit: a handle on its way
  std::uint32_t pid;    // 0: it is not seated any more, or the hold is not a process's
  std::uint32_t count;  // endpoint objects
};

/// Who sleeps at a bell. pid 0: nobody that wrote its name there.
struct SleeperDiagnosis {
  std::uint32_t pid = 0;
  std::int64_t for_ns = 0;
};

struct EndDiagnosis {
  EndState state = EndState::kOpen;
  std::uint32_t owner_pid = 0;  // the only user of an exclusive end
  std::uint32_t lock_pid = 0;   // who is inside a shared one
  std::vector<HolderDiagnosis> holders;
  std::uint32_t last_pid = 0;  // who left or died here last
  std::int64_t left_ns = 0;    // how long ago
  SleeperDiagnosis sleeper;    // at the bell of this end
};

struct ChannelDiagnosis {
  std::uint32_t id = 0;
  ChannelKey key{};
  ChannelType type = ChannelType::kRecord;
  bool shared = false;
  BellKind bell = BellKind::kFutex;
  std::uint32_t messages = 0;
  std::uint32_t sent = 0;  // ever, modulo 2^32; so is `received`
  std::uint32_t received = 0;
  std::uint64_t bytes = 0;
  std::uint64_t max_items = 0;
  std::uint64_t max_bytes = 0;
  EndDiagnosis sender;
  EndDiagnosis receiver;
};

/// The process of a token, 0 if its slot is another's by now.
[[nodiscard]] std::uint32_t pid_of(Segment& segment, Token token) noexcept;
/// One line for each channel in use.
[[nodiscard]] std::vector<ChannelDiagnosis> diagnose(Segment& segment);

}  // namespace ipcbuf
