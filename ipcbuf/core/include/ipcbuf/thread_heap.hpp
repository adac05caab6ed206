// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// thread_heap.hpp - a thread's slabs: allocation without a lock.
//
// Overview
//   A slab is a run of pages cut into at most 64 blocks of one size; above 32 KiB a slab is
//   one block. A thread allocates from its own slabs: the free blocks are bits of a word in
//   private memory, which dies with the thread and costs nothing to recover. A block freed
//   anywhere goes home by its holder word and a bit in the slab's `returned` word.
//
// Why warm: the slab used last is used first, and empty slabs are kept up to a limit. The
// first touch of a shared page costs many times the copy into it.
//
// Settling: a burst leaves many slabs that nobody needs again. At most once a second, on the way
// to a large block or to another slab, those that stood empty and unused since the last time go
// back to the central heap, but for the first `kIdle` bytes of them. Where there are many, it takes
// several turns, each short.
//
// A slab may be taken from us while it is empty, and its memory given back. So each use looks
// first whether it is still ours.
//
// Pairs: K1 of block.hpp (holder: free_block -> allocate).
#pragma once

#include <cstdint>
#include <vector>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

class ThreadHeap {
 public:
  explicit ThreadHeap(Segment& segment) noexcept;

  /// A block for `length` bytes, held by this process; its exact length is in its header.
  [[nodiscard]] Status allocate(std::uint64_t length, std::uint64_t& offset, Failure& why);
  /// Gives empty slabs back to the central heap.
  void trim();
  /// Gives those back that were not needed for a while; then the central heap does the same.
  void settle();
  /// The thread ends: every slab is given back or left to whoever frees its last block.
  void abandon();

  /// Bytes of all our slabs.
  [[nodiscard]] std::uint64_t owned() const noexcept { return owned_; }
  [[nodiscard]] Token token() const noexcept { return token_; }
  [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }

  /// This thread's heap in `segment`; a new one after a fork.
  static ThreadHeap& of(Segment& segment);

 private:
  struct Slab {
    std::uint32_t head;
    std::uint32_t salt;
    std::uint64_t free;  // bit i: block i is free, as far as we know
    bool used = true;    // since we last settled
  };
  struct SizeClass {
    std::uint32_t units = 0;  // of a block, in cache lines
    std::uint32_t pages = 0;  // of a slab
    std::uint32_t count = 0;  // blocks of a slab
    std::size_t current = 0;
    std::size_t cursor = 0;
    std::size_t full_scan_at = 8;  // slabs; doubles
    std::vector<Slab> slabs;
  };

  [[nodiscard]] SizeClass& size_class(std::uint64_t total);
  [[nodiscard]] bool take(SizeClass& c, Slab& slab, std::uint64_t length, std::uint64_t& offset);
  [[nodiscard]] bool is_ours(const Slab& slab);
  void collect(const SizeClass& c, Slab& slab, bool every_header);
  [[nodiscard]] bool settle(SizeClass& c, std::uint32_t& looked);
  [[nodiscard]] bool find_returned(SizeClass& c);
  [[nodiscard]] bool find_free(SizeClass& c);
  [[nodiscard]] Status new_slab(SizeClass& c, Failure& why);
  [[nodiscard]] Status relieve(std::uint32_t pages, std::uint32_t& first, Failure& why);

  Segment* segment_;
  std::uint64_t serial_;
  Token token_;
  std::uint64_t owned_ = 0;     // bytes of all our slabs
  std::uint64_t trim_at_ = 0;   // bytes
  std::int64_t settle_at_ = 0;  // monotonic ns
  struct {
    std::size_t at_class = 0;
    std::size_t seen = 0;           // slabs of that class, from the last one
    std::uint64_t idle = 0;         // bytes found unused
  } settling_;                      // how far the last turn came
  std::vector<SizeClass> classes_;  // the small ones by position, then large ones as they come
};

}  // namespace ipcbuf
