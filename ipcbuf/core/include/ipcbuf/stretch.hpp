// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// stretch.hpp - the records that one end of a ring may pass without a look at the other side.
//
// Overview
//   An end that is used by one thread alone keeps here, in memory of its own, where its next record
//   lies and for how many records and bytes from there it has the other side's word already. On
//   this stretch a record costs no more than its bytes, the header and the stores that publish it.
//   The rest is for RingWriter and RingReader (ring.hpp): what it says of the other side is used
//   up, a skip mark, descriptors. It is set up at the position that one of these has reached.
//
// Invariants
//   I4  `word` is the end's word in the ring. A stretch whose end has moved without it is not used:
//       the caller compares `items` with the count in the end's row.
//
// Pairs (release -> acquire), those of ring.hpp
//   P1  write_word  publish -> RingReader::front, look   carries the record's bytes
//   P2  read_word   pop     -> RingWriter::room          carries "the bytes are free"
#pragma once

#include <cstddef>
#include <cstdint>

#include "ipcbuf/ring.hpp"

namespace ipcbuf {

template <class A = Atomics>
struct Stretch {
  std::byte* at = nullptr;    // the next record; nullptr: not set up
  std::uint32_t bytes = 0;    // from there to the end of the stretch
  std::uint32_t records = 0;  // that may still be sent, or that are known to be there
  std::uint32_t items = 0;    // the count of the end at `at`
  std::uint64_t word = 0;

  /// Sender: makes the record whose `payload` bytes lie behind its header at `at` visible.
  void publish(RingHeader& ring, RecordKind kind, std::uint32_t payload,
               std::uint64_t cumulative) noexcept {
    const std::uint32_t size = record_size(payload, 0);
    // relaxed: P1 carries both words
    A::store_relaxed(cell(0), RecordHeader{size, payload, kind, false, 0}.pack());
    A::store_relaxed(cell(8), cumulative);
    pass(size);
    A::store_release(ring.write_word, word);  // P1 release, to RingReader::front
  }

  /// Receiver: True if the next record is a plain one, which lies wholly in the stretch.
  [[nodiscard]] bool front(RecordHeader& header, std::uint64_t& cumulative) const noexcept {
    if (bytes < kRecordHeader) return false;
    const std::uint64_t first = A::load_relaxed(cell(0));  // relaxed: P1 carried both
    header = RecordHeader::unpack(first);
    cumulative = A::load_relaxed(cell(8));
    return first >> 51 == 0 && header.kind != RecordKind::kSkip && header.payload <= kMaxInline &&
           header.size == record_size(header.payload, 0) && header.size <= bytes;
  }
  /// Receiver: looks for more. False: none, or an impossible number of them.
  [[nodiscard]] bool look(const Ring<A>& ring, typename Ring<A>::Word& cache) noexcept {
    const std::uint64_t write = A::load_acquire(ring.header->write_word);  // P1 acquire
    const RingWord read = RingWord::unpack(word);
    A::store_relaxed(cache, write);
    if (!is_possible(ring, read, RingWord::unpack(write))) return false;
    records = RingWord::unpack(write).items - read.items;
    return records != 0;
  }
  /// Receiver: frees the record of `size` bytes that `front` showed.
  void pop(RingHeader& ring, std::uint32_t size) noexcept {
    pass(size);
    A::store_release(ring.read_word, word);  // P2 release, to RingWriter::room
  }

 private:
  void pass(std::uint32_t size) noexcept {
    at += size;
    bytes -= size;
    --records;
    ++items;
    word += std::uint64_t{1} << 32 | size;
  }
  [[nodiscard]] typename Ring<A>::Word& cell(std::uint32_t offset) const noexcept {
    return *reinterpret_cast<typename Ring<A>::Word*>(at + offset);
  }
};

}  // namespace ipcbuf
