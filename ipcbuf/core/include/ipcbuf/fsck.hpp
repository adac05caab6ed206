// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// fsck.hpp - the walk over everything: is each ground truth of layout.hpp possible, do they
// agree, and who holds what? Exact on a segment nobody is changing; changes nothing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// What processes hold, and slabs of one block size have.
struct Share {
  std::uint64_t blocks = 0;
  std::uint64_t bytes = 0;  // exact lengths
};
struct SizeClassCensus {
  std::uint64_t slabs = 0;
  std::uint64_t used_blocks = 0;
  std::uint64_t free_blocks = 0;
};

struct Census {
  std::vector<std::string> problems;  // empty: sound
  std::uint64_t committed_bytes = 0;
  std::uint64_t free_bytes = 0;  // in free runs
  std::uint64_t largest_free = 0;
  std::uint64_t returned_bytes = 0;  // free, but given back to the system
  std::uint64_t reserved_runs = 0;
  std::uint64_t reserved_bytes = 0;  // in runs that become slabs, or are on their way out
  std::uint64_t slab_bytes = 0;      // = used + waste + free blocks + overhead
  std::uint64_t used_bytes = 0;      // exact lengths of the blocks in use
  std::uint64_t waste_bytes = 0;     // what these have beyond their lengths
  std::uint64_t free_block_bytes = 0;
  std::uint64_t overhead_bytes = 0;  // headers of used blocks, and ends of slabs
  std::uint64_t slabs = 0;
  std::uint64_t orphan_slabs = 0;
  std::uint64_t free_blocks = 0;
  std::uint64_t process_blocks = 0;  // held by a process, in flight ones not counted
  std::uint64_t process_bytes = 0;
  std::uint64_t flight_blocks = 0;
  std::uint64_t flight_bytes = 0;
  std::uint64_t ring_blocks = 0;  // blocks of static segments included
  std::uint64_t ring_bytes = 0;
  std::uint64_t leased_blocks = 0;    // of process_blocks, those that go back if it dies
  std::uint64_t returned_blocks = 0;  // that went back, and wait to be taken again
  std::uint64_t shared_blocks = 0;
  std::uint64_t shared_bytes = 0;
  std::uint64_t processes = 0;
  std::uint64_t parcels = 0;  // seats for handles on their way to new processes (parcels.hpp)
  std::uint64_t channels = 0;
  std::uint64_t messages = 0;
  std::uint64_t entries = 0;
  std::uint64_t tickets = 0;
  std::map<Token, Share> holders;                    // in flight ones not counted
  std::map<std::uint32_t, SizeClassCensus> by_size;  // bytes of a block, header included
};

/// With `exact` false only counts: for statistics while others work.
[[nodiscard]] Census take_census(Segment& segment, bool exact);

}  // namespace ipcbuf
