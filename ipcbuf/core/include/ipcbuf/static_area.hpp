// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// static_area.hpp - memory with a key: zeros at first, initialised once, shared by its users.
//
// Overview
//   A channel of type kStatic without rings. Its block is held by the channel and reached by
//   ChannelRow::value; its users hold the sending end. An init function runs under the lock of
//   that end, which is no lock of the core: nothing else is locked meanwhile, and who waits for
//   it comes back in slices.
//
// Steps
//   Make:     allocate (mine) -> zero -> holder := channel -> value := offset (the commit).
//   Give back: creator := me -> value := 0 (the commit) -> free. As a ring (C2 of channel.hpp).
//   Init:     lock -> ready := kBegun -> init -> ready := kDone (the commit) -> unlock.
//             Who finds kBegun under the lock follows one that raised or died: zeros first.
//
// Pairs
//   S1  ready  end_init -> begin_init_slice   carries what init has written
#pragma once

#include <cstddef>
#include <cstdint>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// The block of a draft of type kStatic.
[[nodiscard]] Status make_area(Segment& segment, std::uint32_t id, std::uint64_t length,
                               Failure& why);
void give_back_area(Segment& segment, ChannelRow& row, std::uint32_t id) noexcept;
/// The block's offset, checked; 0 if there is none.
[[nodiscard]] std::uint64_t area_block(Segment& segment, ChannelRow& row) noexcept;
[[nodiscard]] std::uint64_t area_length(Segment& segment, ChannelRow& row) noexcept;

/// kOk: the memory may be used. kEmpty: it is our turn, run init and call `end_init`. kSlice:
/// another's init runs; look for signals and call again.
[[nodiscard]] Status begin_init_slice(Segment& segment, std::uint32_t id, bool has_init) noexcept;
void end_init(Segment& segment, std::uint32_t id, bool done) noexcept;

}  // namespace ipcbuf
