// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// status.hpp - what an operation of the core answers. The binding maps each to an exception.
#pragma once

#include <cstdint>

namespace ipcbuf {

enum class [[nodiscard]] Status : int {
  kOk,
  kEmpty,        // nothing to receive now
  kFull,         // no room to send now
  kContended,    // the lock of a shared end is held by somebody else right now
  kSlice,        // a wait came to the end of its slice; look again
  kClosed,       // this end was closed here
  kEnded,        // the other side closed and everything was read
  kBroken,       // the other side died or left early
  kBusyEnd,      // an exclusive end belongs to another process
  kTooLarge,     // can never fit
  kExhausted,    // no memory; see Failure
  kTooMany,      // process slots, channels or shared entries are used up
  kNotFound,     // no such channel, or no such segment
  kExists,       // there is one of that name already
  kMismatch,     // the channel of that key has another type or size; see Failure::reason
  kPermission,   // of another user, or open to others; see Failure::reason
  kLost,         // somebody closed the segment's descriptor in this process
  kTorn,         // a raw clone copied this process's own tables half changed (fork.hpp)
  kSystem,       // a system call failed; see Failure::sys_errno
  kNotASegment,  // attach: no magic
  kVersion,      // attach: another layout version
  kAbiDiffers,   // attach: another architecture
  kTruncated,    // attach: shorter than its header says
  kCorrupted,    // an impossible state was met; the segment is poisoned
};

/// The numbers behind a refusal. Filled by whoever refuses; texts are the binding's.
struct Failure {
  Status status = Status::kOk;
  int sys_errno = 0;
  const char* reason = "";  // static text: "max_size", "cgroup", "MemAvailable", a call's name
  std::uint64_t requested = 0;
  std::uint64_t committed = 0;
  std::uint64_t max_size = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t largest_run = 0;
  std::uint64_t headroom = 0;     // of the memory cgroup, or of MemAvailable
  std::uint64_t system_size = 0;  // of the file system (ENOSPC), or allowed of a file (EFBIG)
  std::uint64_t system_free = 0;
  std::uint64_t found = 0;     // version, ABI word, size or mode as it is there,
  std::uint64_t expected = 0;  // and as it should be
};

}  // namespace ipcbuf
