// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/static_area.hpp"

#include <cstring>

#include "ipcbuf/block.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/slice.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace ipcbuf {

using A = Atomics;

Status make_area(Segment& s, std::uint32_t id, std::uint64_t length, Failure& why) {
  std::uint64_t offset = 0;
  const Status status = ThreadHeap::of(s).allocate(length, offset, why);
  if (status != Status::kOk) return status;
  std::memset(s.payload(offset), 0, length);
  give_ring(s, offset, id);
  A::store_release(s.channel(index_of(id)).value, offset);  // the commit
  return Status::kOk;
}

void give_back_area(Segment& s, ChannelRow& row, std::uint32_t id) noexcept {
  const std::uint64_t offset = A::load_acquire(row.value);
  BlockPlace p{};
  if (offset == 0) return;
  if (!s.place(offset, p)) {
    (void)s.poison(__LINE__);
    return;
  }
  note_slot(s, p);
  A::store_release(s.block(offset).creator, s.token());
  A::store_release(row.value, 0);  // the commit
  (void)free_block(s, offset, by_channel(id));
}

std::uint64_t area_block(Segment& s, ChannelRow& row) noexcept {
  const std::uint64_t offset = A::load_acquire(row.value);
  BlockPlace p{};
  return s.place(offset, p) ? offset : 0;
}

std::uint64_t area_length(Segment& s, ChannelRow& row) noexcept {
  const std::uint64_t offset = A::load_acquire(row.value);
  BlockPlace p{};
  if (!s.place(offset, p)) return 0;
  const std::uint64_t length = A::load_acquire(s.block(offset).length);
  return length <= p.size() - sizeof(BlockHeader) ? length : 0;
}

Status begin_init_slice(Segment& s, std::uint32_t id, bool has_init) noexcept {
  ChannelRow& row = s.channel(index_of(id));
  const auto state = [&] { return static_cast<InitState>(A::load_acquire(row.ready)); };  // S1
  const auto nothing_to_do = [&] {
    return state() == InitState::kDone || (!has_init && state() == InitState::kNever);
  };
  if (nothing_to_do()) return Status::kOk;
  const bool held = row.sender.lock.acquire(
      s.token(), platform::monotonic_ns() + kShortSlice, [&](Token t) { return s.is_dead(t); },
      [&] { A::fetch_add(s.header().takeovers, 1); });
  if (!held) return Status::kSlice;
  if (!nothing_to_do()) {
    if (state() == InitState::kBegun) {
      const std::uint64_t block = area_block(s, row);
      const std::uint64_t length = area_length(s, row);
      if (block == 0) {
        row.sender.lock.release();
        return s.poison(__LINE__);
      }
      std::memset(s.payload(block), 0, length);
    }
    if (has_init) {
      A::store_release(row.ready, static_cast<std::uint32_t>(InitState::kBegun));
      return Status::kEmpty;
    }
    A::store_release(row.ready, static_cast<std::uint32_t>(InitState::kNever));
  }
  row.sender.lock.release();
  return Status::kOk;
}

void end_init(Segment& s, std::uint32_t id, bool done) noexcept {
  ChannelRow& row = s.channel(index_of(id));
  if (row.sender.lock.owner() != s.token()) return;  // init has forked: this is the child
  if (done) A::store_release(row.ready, static_cast<std::uint32_t>(InitState::kDone));  // S1
  row.sender.lock.release();
}

}  // namespace ipcbuf
