// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// named.hpp - segments with a name: created or opened by whoever comes first.
//
// Overview
//   A named segment is a file in a directory that only its user may enter. It is filled while it
//   has no name, with its creator's seat already taken, and then linked into place: who can see
//   it can use it. Who finds the name taken opens what is there. A file whose users are all dead
//   is stale: the next one to open it, or the collector, removes it, and a fresh one is made.
//
// Invariants
//   N1  A name leads to a complete segment, or to nothing. (Where a file cannot be made without a
//       name it has a random one that begins with ".tmp-", which no user can ask for.)
//   N2  A name is taken away only by who holds the gate of the very file it leads to alone, and
//       has looked after that where it leads. So nobody removes what another has just made.
//   N3  Who opens a file holds its gate, shared, from before he looked where the name leads until
//       he has a seat with its life byte. So between the proof that nobody uses a file and its
//       removal nobody gets in.
//   N4  The gate and the life bytes are locks of an open file description: a dead process has none.
//
// Life cycle
//   nameless (gone with its creator) -> linked, creator seated -> others come and go -> the last
//   one who leaves in order takes the name away; if the last one died, it stays, stale, until
//   somebody asks for it or collects.
//
// What a kill leaves: before the link nothing (or a ".tmp-" file, whose gate is free: the
// collector's); behind it a stale file. Between the link of a random name and its removal a file
// with two names, one of which whoever comes next takes away.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ipcbuf/segment.hpp"
#include "ipcbuf/status.hpp"

namespace ipcbuf {

inline constexpr std::size_t kMaxName = 200;  // bytes

struct NamedOptions {
  std::uint64_t max_size = 0;   // of a new one; 0: half of what the machine and its cgroups allow
  bool create = true;           // else kNotFound
  bool exist_ok = true;         // else kExists
  bool allow_disk = false;      // else the directory must lie in memory
  bool by_random_name = false;  // as where a file cannot be made without a name
};

/// A refusal, the file it is about, and what a person should know and do.
struct NamedFailure : Failure {
  std::string path;
  std::string detail;
};

/// Null: why. The segment that this process has already, if it has it. What is returned counts as
/// a handle, for `drop_handle`.
std::shared_ptr<Segment> open_named(const std::string& name, const NamedOptions& options,
                                    NamedFailure& why);
/// Takes the name away; users go on. kNotFound: there is none.
Status unlink_named(const std::string& name, NamedFailure& why);
/// The same, if the name still leads to this segment; else kNotFound.
Status unlink_named(Segment& segment, NamedFailure& why);
/// Takes the name away if nobody but this process uses the segment. For who leaves.
void retire_named(Segment& segment) noexcept;
/// Gives a handle of `open_named` up; behind the last one here, as `retire_named`. The mapping and
/// the seat go with the last reference.
void drop_handle(Segment& segment) noexcept;

struct NamedInfo {
  std::string name;
  Status status = Status::kOk;      // what opening it would say
  std::uint64_t memory = 0;         // bytes taken in the file system
  std::uint64_t max_size = 0;       // bytes its heap may grow to
  std::vector<std::uint32_t> pids;  // of the living, in their own pid namespaces
  bool is_stale = false;            // nobody alive
};
/// All segments of this user, without a seat in any.
Status list_named(std::vector<NamedInfo>& out, NamedFailure& why);
/// Removes what the dead have left; the names that were removed. Of files that are no sound
/// segments any more (cut short, written over) only if asked to.
Status collect_named(std::vector<std::string>& removed, bool damaged_too, NamedFailure& why);

}  // namespace ipcbuf
