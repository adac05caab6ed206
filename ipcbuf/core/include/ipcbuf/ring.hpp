// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ring.hpp - bounded single-producer single-consumer ring of records.
//
// Overview
//   A record is two words of header, the descriptors of its blocks, and its inline bytes,
//   rounded up to 16. A record never wraps: where the end of the ring is too near, a skip
//   mark sends the reader to the start. Each side has one word {index, items}: index is the
//   byte where its next record lies, items counts what it has passed. One store of that word
//   publishes a record, with its count; one consumes it.
//
// Invariants
//   I1  items written - items read (modulo 2^32) is the number of records in the ring; the ring
//       is empty exactly if they are equal, whatever the indices say.
//   I2  Only the sender stores write_word, only the receiver stores read_word.
//   I3  Bytes from the read index to the write index (around the end) belong to the receiver,
//       the rest to the sender.
//
// Pairs (release -> acquire)
//   P1  write_word  RingWriter::publish -> RingReader::front   carries the record's bytes
//   P2  read_word   RingReader::pop     -> RingWriter::room    carries "the bytes are free"
//
// Why not positions that only grow and are masked: a ring is what is left of a block behind
// its headers, so its capacity is no power of two, and the item count must change in the
// same store as the position (exact qsize after a kill).
//
// The words of a record's header are atomic (relaxed) because a reaper may look at a record
// while its receiver frees it; it looks again at read_word before it believes what it saw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ipcbuf/layout.hpp"

namespace ipcbuf {

inline constexpr std::uint32_t kMaxBlocks = 64;    // of one message
inline constexpr std::uint32_t kMaxInline = 2048;  // bytes of a message inside the ring
inline constexpr std::uint32_t kMinRing = 16384 - kRingOverhead;

struct BlockRef {
  std::uint64_t offset;
  std::uint64_t length;
};

enum class RecordKind : std::uint8_t { kSkip = 0, kRaw = 1, kNative = 2, kPickle = 3, kTask = 4 };

/// First word of a record: size in 16 bytes : 20, inline bytes : 24, kind : 7,
/// payload is the first block : 1, blocks : 8.
struct RecordHeader {
  std::uint32_t size;  // bytes, this header included
  std::uint32_t payload;
  RecordKind kind;
  bool payload_in_block;
  std::uint8_t blocks;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return std::uint64_t{size / 16} | std::uint64_t{payload} << 20 |
           static_cast<std::uint64_t>(kind) << 44 | std::uint64_t{payload_in_block} << 51 |
           std::uint64_t{blocks} << 52;
  }
  static constexpr RecordHeader unpack(std::uint64_t w) noexcept {
    return {static_cast<std::uint32_t>(w & 0xFFFFF) * 16,
            static_cast<std::uint32_t>(w >> 20 & 0xFFFFFF), static_cast<RecordKind>(w >> 44 & 0x7F),
            (w >> 51 & 1) != 0, static_cast<std::uint8_t>(w >> 52)};
  }
};
inline constexpr std::uint32_t kRecordHeader = 16;

constexpr std::uint32_t record_size(std::uint32_t payload, std::uint32_t blocks) noexcept {
  return (kRecordHeader + blocks * static_cast<std::uint32_t>(sizeof(BlockRef)) + payload + 15U) &
         ~15U;
}
static_assert(record_size(kMaxInline, kMaxBlocks) * 4 < kMinRing);

struct RingWord {
  std::uint32_t index;
  std::uint32_t items;
  static constexpr RingWord unpack(std::uint64_t w) noexcept {
    return {static_cast<std::uint32_t>(w), static_cast<std::uint32_t>(w >> 32)};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return std::uint64_t{index} | std::uint64_t{items} << 32;
  }
};

/// A ring as one process sees it; `capacity` was checked against its block.
template <class A = Atomics>
struct Ring {
  RingHeader* header = nullptr;
  std::byte* data = nullptr;
  std::uint32_t capacity = 0;

  using Word = typename A::template Cell<std::uint64_t>;
  [[nodiscard]] Word& word_at(std::uint32_t index) const noexcept {
    return *reinterpret_cast<Word*>(data + index);
  }
};

/// False: more records than the ring has room for. Before a walk over them, to bound it.
template <class A>
[[nodiscard]] bool is_possible(const Ring<A>& ring, RingWord read, RingWord write) noexcept {
  return write.items - read.items <= ring.capacity / kRecordHeader;
}

/// The record at `index`, skip marks resolved; false: impossible (or overwritten meanwhile).
template <class A>
[[nodiscard, gnu::always_inline]] inline bool parse_record(const Ring<A>& ring, std::uint32_t index,
                                                           RecordHeader& header,
                                                           std::uint32_t& start) noexcept {
  for (int hops = 0; hops < 2; ++hops) {
    if (index == ring.capacity) index = 0;
    if (index > ring.capacity - kRecordHeader || index % 16 != 0) return false;
    header = RecordHeader::unpack(A::load_relaxed(ring.word_at(index)));
    if (header.kind != RecordKind::kSkip) {
      start = index;
      return header.size >= kRecordHeader && header.size <= ring.capacity - index &&
             header.blocks <= kMaxBlocks &&
             record_size(header.payload, header.blocks) == header.size &&
             (!header.payload_in_block || header.blocks > 0);
    }
    index = 0;
  }
  return false;
}

template <class A = Atomics>
class RingWriter {
 public:
  /// `cache` keeps the reader's word as last seen; an old value only hides room.
  RingWriter(const Ring<A>& ring, typename Ring<A>::Word& cache) noexcept
      : ring_(ring),
        cache_(cache),
        // relaxed: our own last store, or the previous sender's, passed on by the lock (I2)
        write_(RingWord::unpack(A::load_relaxed(ring.header->write_word))) {}

  /// Where a record of `size` bytes can be written, or nullptr. Leaves a skip mark if it must.
  [[nodiscard]] std::byte* room(std::uint32_t size) noexcept {
    // relaxed: what was seen once was acquired then, here or by who held the lock before us
    if (std::byte* at = fit(size, RingWord::unpack(A::load_relaxed(cache_)))) return at;
    // P2 acquire, from RingReader::pop: what was there is not read any more.
    const std::uint64_t read = A::load_acquire(ring_.header->read_word);
    A::store_relaxed(cache_, read);
    return fit(size, RingWord::unpack(read));
  }

  /// How many bytes are free from the position on, up to the end, by what is known here already.
  [[nodiscard]] std::uint32_t ahead() const noexcept {
    const RingWord read = RingWord::unpack(A::load_relaxed(cache_));  // relaxed: as in `room`
    const bool before = write_.items != read.items && write_.index <= read.index;
    const std::uint32_t end = before ? read.index : ring_.capacity;
    return end <= ring_.capacity && write_.index <= end ? end - write_.index : 0;
  }

  /// Makes the record written at `room` visible. `header` goes last but for the word itself.
  void publish(const RecordHeader& header, std::uint64_t cumulative) noexcept {
    A::store_relaxed(ring_.word_at(start_), header.pack());  // relaxed: P1 carries both words
    A::store_relaxed(ring_.word_at(start_ + 8), cumulative);
    write_ = {start_ + header.size, write_.items + 1};
    // P1 release, to RingReader::front: the record is whole before it is counted.
    A::store_release(ring_.header->write_word, write_.pack());
  }

  [[nodiscard]] RingWord position() const noexcept { return write_; }

 private:
  [[nodiscard]] std::byte* fit(std::uint32_t size, RingWord read) noexcept {
    std::uint32_t at = write_.index;
    if (at > ring_.capacity || at % 16 != 0 || read.index > ring_.capacity) return nullptr;
    const bool empty = read.items == write_.items;
    if (!empty && at <= read.index) {
      if (size > read.index - at) return nullptr;
    } else if (size > ring_.capacity - at) {
      if (size > read.index) return nullptr;
      // Of an empty ring the reader stands where we stand, so it finds the mark.
      if (at < ring_.capacity)
        A::store_relaxed(ring_.word_at(at),
                         RecordHeader{16, 0, RecordKind::kSkip, false, 0}.pack());
      at = 0;
    }
    start_ = at;
    return ring_.data + at;
  }

  const Ring<A>& ring_;
  typename Ring<A>::Word& cache_;
  RingWord write_;
  std::uint32_t start_ = 0;
};

enum class Front { kRecord, kEmpty, kCorrupted };

template <class A = Atomics>
class RingReader {
 public:
  /// `cache` keeps the writer's word as last seen; an old value only hides records.
  RingReader(const Ring<A>& ring, typename Ring<A>::Word& cache) noexcept
      : ring_(ring),
        cache_(cache),
        // relaxed: our own last store, or the previous receiver's, passed on by the lock (I2)
        read_(RingWord::unpack(A::load_relaxed(ring.header->read_word))) {}

  /// The oldest record. `header` and `at` are checked against the ring.
  [[nodiscard]] Front front(RecordHeader& header, std::uint64_t& cumulative,
                            const std::byte*& at) noexcept {
    // relaxed: what was seen once was acquired then, here or by who held the lock before us
    if (RingWord::unpack(A::load_relaxed(cache_)).items == read_.items) {
      // P1 acquire, from RingWriter::publish: the record's bytes.
      const std::uint64_t write = A::load_acquire(ring_.header->write_word);
      A::store_relaxed(cache_, write);
      if (RingWord::unpack(write).items == read_.items) return Front::kEmpty;
      if (!is_possible(ring_, read_, RingWord::unpack(write))) return Front::kCorrupted;
    }
    if (!parse(read_.index, header)) return Front::kCorrupted;
    cumulative = A::load_relaxed(ring_.word_at(start_ + 8));
    at = ring_.data + start_ + kRecordHeader;
    return Front::kRecord;
  }

  /// Frees the record returned by `front`.
  void pop(const RecordHeader& header) noexcept {
    read_ = {start_ + header.size, read_.items + 1};
    // P2 release, to RingWriter::room: we do not read these bytes again.
    A::store_release(ring_.header->read_word, read_.pack());
  }

  [[nodiscard]] RingWord position() const noexcept { return read_; }

 private:
  [[nodiscard]] bool parse(std::uint32_t index, RecordHeader& header) noexcept {
    return parse_record(ring_, index, header, start_);
  }

  const Ring<A>& ring_;
  typename Ring<A>::Word& cache_;
  RingWord read_;
  std::uint32_t start_ = 0;
};

}  // namespace ipcbuf
