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
//       free runs touch, and the index holds every free run once, ordered as a heap.
//       A kill may break R3; whoever takes the lock over rebuilds it by the walk.
//
// Split: write the tail's word (still inside the run, so unseen), then shorten the first.
// Merge: lengthen the first. Free: one store, which also merges with the run in front.
#pragma once

#include <cstdint>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

class RunHeap {
 public:
  explicit RunHeap(Segment& segment) noexcept : s_(segment) {}

  /// Takes a run of `pages` pages, state kReserved, held by our token.
  [[nodiscard]] Status allocate(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept;
  /// Gives the run back. The caller is the only user of it.
  [[nodiscard]] Status free(std::uint32_t first) noexcept;
  /// Takes the lock over from a dead owner, if there is one, and gives it back.
  void recover_lock() noexcept;
  /// Recomputes R3 from R1; false: the walk is impossible.
  [[nodiscard]] bool rebuild() noexcept;
  /// First pages of all runs in `state`, into `out` (room for `capacity`); returns how many.
  [[nodiscard]] std::uint32_t list(RunState state, std::uint32_t* out,
                                   std::uint32_t capacity) noexcept;
  /// Bytes free, and bytes of the longest free run.
  void measure(std::uint64_t& free_bytes, std::uint64_t& largest) noexcept;

 private:
  friend struct HeapLock;

  [[nodiscard]] Status grow(std::uint32_t pages, Failure& why) noexcept;
  [[nodiscard]] std::uint32_t index_size() noexcept;
  [[nodiscard]] std::uint32_t index_at(std::uint32_t at) noexcept;
  void index_push(std::uint32_t page) noexcept;
  void index_remove(std::uint32_t page) noexcept;
  void sift_up(std::uint32_t at) noexcept;
  void sift_down(std::uint32_t at) noexcept;
  void index_place(std::uint32_t at, std::uint32_t page) noexcept;
  [[nodiscard]] std::uint32_t length(std::uint32_t page) noexcept;
  [[nodiscard]] std::uint32_t find_fit(std::uint32_t pages) noexcept;
  void set_footer(std::uint32_t first, std::uint32_t length) noexcept;
  [[nodiscard]] bool free_run_before(std::uint32_t page, std::uint32_t& head) noexcept;

  Segment& s_;
};

}  // namespace ipcbuf
