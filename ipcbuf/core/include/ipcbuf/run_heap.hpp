// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// run_heap.hpp - the central heap: runs of pages, shared by all processes.
//
// Overview
//   A run is described by one word at its first page; the heap is the walk p -> p + length.
//   Free runs are found through a priority heap keyed by length, longest on top. Growth
//   reserves file space first and moves `committed_pages` last. All under one owner word.
//
// Invariants
//   R1  From page 0 the walk ends exactly at committed_pages. Always, even in mid-change.
//   R2  A change commits with one store to one run word (or to committed_pages).
//   R3  Between changes: the last page of every run knows the way back to its first, no two
//       runs that are both free or both returned touch, the index holds every free run once,
//       ordered as a heap, and the list every returned one.
//       A kill may break R3; whoever takes the lock over rebuilds it by the walk.
//   R4  The memory of a run is reserved unless its word says kReturned or kUnbacked. So a run
//       becomes kUnbacked before its memory goes, and stays so until it is reserved again; what
//       is found kUnbacked behind a dead process is returned, whether its memory went or not.
//   R5  Inside a run no stale word says kSlab: a run is first made free, then merged. So
//       `Segment::place` finds no block where there is none.
//
// Split: write the tail's word (still inside the run, so unseen), then shorten the first.
// Merge: lengthen the first. Free and returned runs are not merged, as only one of them is
// reserved; where an allocation needs the room of both, they become one returned run.
//
// Giving back: a page touched for the first time costs many times the copy into it, so what was
// needed a moment ago is kept. The least that was free during at least a second was not needed
// in it; of that, what goes beyond `kWarm` is given back, at most `kAtOnce` in one call and in a
// tenth of a second. The longest run gives its tail, because allocation takes from the front. It
// happens where no lock is held: when a thread takes a run, and when its heap settles.
#pragma once

#include <cstdint>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

class RunHeap {
 public:
  static constexpr std::uint32_t kGiveBack = (2U << 20) >> kPageShift;  // pages: no less at once
  // Pages. Measured, CPU time for 64 MiB: filling it warm 5 ms; giving it back 11 ms, reserving it
  // again 15 ms, and the first touch makes filling it take 28 ms.
  static constexpr std::uint32_t kWarm = (32U << 20) >> kPageShift;
  static constexpr std::uint32_t kAtOnce = (64U << 20) >> kPageShift;

  explicit RunHeap(Segment& segment) noexcept : s_(segment) {}

  /// Takes a run of `pages` pages, state kReserved, held by our token.
  [[nodiscard]] Status allocate(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept;
  /// Gives the run back to the heap. The caller is the only user of it.
  [[nodiscard]] Status free(std::uint32_t first) noexcept;
  /// Gives up to `most` pages of free runs back to the system; returns how many. They count as
  /// returned from here on.
  std::uint32_t give_back(std::uint32_t most) noexcept;
  /// As `give_back`, of what nobody needed for a second. Cheap if there is nothing to do.
  void give_back_surplus() noexcept;
  /// Takes the lock over from a dead owner, if there is one, and gives it back.
  void recover_lock() noexcept;
  /// Recomputes R3 from R1; false: the walk is impossible.
  [[nodiscard]] bool rebuild() noexcept;
  /// First pages of all runs in `state`, into `out` (room for `capacity`); returns how many.
  [[nodiscard]] std::uint32_t list(RunState state, std::uint32_t* out,
                                   std::uint32_t capacity) noexcept;
  /// Bytes free, and bytes of the longest free run.
  void measure(std::uint64_t& free_bytes, std::uint64_t& largest) noexcept;
  /// What to say of `requested` bytes of a table that `Segment::reserve` refused with `error`:
  /// kExhausted with the numbers, or kLost.
  [[nodiscard]] Status refuse(int error, std::uint64_t requested, Failure& why) noexcept;

 private:
  friend struct HeapLock;

  [[nodiscard]] Status take(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept;
  void take_free(std::uint32_t at, std::uint32_t pages) noexcept;
  [[nodiscard]] bool take_returned(std::uint32_t pages, std::uint32_t& first) noexcept;
  [[nodiscard]] bool join_neighbours(std::uint32_t pages) noexcept;
  [[nodiscard]] Status back(std::uint32_t first, std::uint32_t pages, Failure& why) noexcept;
  [[nodiscard]] Status settle(std::uint32_t first, RunState state) noexcept;
  [[nodiscard]] Status grow(std::uint32_t pages, Failure& why) noexcept;
  void count(Failure& why) noexcept;
  void enlist(std::uint32_t page, RunState state) noexcept;
  void delist(std::uint32_t page, RunState state) noexcept;
  [[nodiscard]] std::uint32_t index_size() noexcept;
  [[nodiscard]] std::uint32_t index_at(std::uint32_t at) noexcept;
  void index_push(std::uint32_t page) noexcept;
  void index_remove(std::uint32_t page) noexcept;
  void sift_up(std::uint32_t at) noexcept;
  void sift_down(std::uint32_t at) noexcept;
  void index_place(std::uint32_t at, std::uint32_t page) noexcept;
  void list_push(std::uint32_t page) noexcept;
  void list_remove(std::uint32_t page) noexcept;
  void add_pages(Atomic<std::uint32_t>& counter, std::uint32_t pages) noexcept;
  [[nodiscard]] std::uint32_t length(std::uint32_t page) noexcept;
  [[nodiscard]] std::uint32_t find_fit(std::uint32_t pages) noexcept;
  void set_footer(std::uint32_t first, std::uint32_t length) noexcept;
  [[nodiscard]] bool run_before(std::uint32_t page, RunState state, std::uint32_t& head) noexcept;

  Segment& s_;
};

}  // namespace ipcbuf
