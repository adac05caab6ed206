// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_ring.cpp - ring.hpp over plain memory: one writer, one reader, no segment.
#include <deque>
#include <memory>
#include <thread>

#include "check.hpp"
#include "ipcbuf/ring.hpp"

namespace {

using namespace ipcbuf;

struct Memory {
  explicit Memory(std::uint32_t capacity, std::uint32_t items = 0, std::uint32_t index = 0)
      : bytes(new (std::align_val_t{64}) std::byte[sizeof(RingHeader) + capacity]()) {
    auto* header = new (bytes.get()) RingHeader{};
    header->capacity = capacity;
    header->write_word.store(RingWord{index, items}.pack());
    header->read_word.store(RingWord{index, items}.pack());
    writer_cache.store(RingWord{index, items}.pack());
    reader_cache.store(RingWord{index, items}.pack());
    ring = {header, bytes.get() + sizeof(RingHeader), capacity};
  }
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> bytes;
  Ring<> ring;
  Atomic<std::uint64_t> writer_cache{0};
  Atomic<std::uint64_t> reader_cache{0};
};

bool push(Memory& m, std::uint32_t payload, std::uint64_t number) {
  RingWriter<> writer(m.ring, m.writer_cache);
  const std::uint32_t size = record_size(payload, 0);
  std::byte* at = writer.room(size);
  if (at == nullptr) return false;
  std::memset(at + kRecordHeader, static_cast<int>(number & 255), payload);
  writer.publish({size, payload, RecordKind::kRaw, false, 0}, number);
  return true;
}

/// 0 = empty, else the number of the record, if all its bytes are right.
std::uint64_t pop(Memory& m, std::uint32_t payload) {
  RingReader<> reader(m.ring, m.reader_cache);
  RecordHeader header{};
  std::uint64_t number = 0;
  const std::byte* at = nullptr;
  const Front front = reader.front(header, number, at);
  if (front == Front::kEmpty) return 0;
  CHECK(front == Front::kRecord);
  CHECK_EQ(payload, header.payload);
  for (std::uint32_t i = 0; i < header.payload; ++i)
    if (at[i] != static_cast<std::byte>(number & 255)) return ~0ULL;
  reader.pop(header);
  return number;
}

TEST(a_header_survives_packing) {
  for (const std::uint32_t payload : {0U, 1U, 2048U})
    for (const std::uint32_t blocks : {0U, 1U, 64U}) {
      const RecordHeader in{record_size(payload, blocks), payload, RecordKind::kTask, blocks > 0,
                            static_cast<std::uint8_t>(blocks)};
      const RecordHeader out = RecordHeader::unpack(in.pack());

      CHECK_EQ(in.size, out.size);
      CHECK_EQ(in.payload, out.payload);
      CHECK(in.kind == out.kind);
      CHECK_EQ(in.payload_in_block, out.payload_in_block);
      CHECK_EQ(in.blocks, out.blocks);
    }
}

TEST(a_new_ring_is_empty) {
  Memory m(256);

  CHECK_EQ(0U, pop(m, 0));
}

TEST(a_full_ring_refuses_and_takes_again_after_a_pop) {
  Memory m(256);
  std::uint64_t sent = 0;
  while (push(m, 16, sent + 1)) ++sent;

  CHECK_EQ(8U, sent);
  CHECK_EQ(1U, pop(m, 16));
  CHECK(push(m, 16, sent + 1));
  CHECK(!push(m, 16, sent + 2));
}

TEST(records_wrap_at_every_offset) {
  for (std::uint32_t capacity = 128; capacity <= 272; capacity += 16) {
    for (std::uint32_t start = 0; start < capacity; start += 16) {
      for (std::uint32_t payload = 0; payload + 16 <= capacity; ++payload) {
        Memory m(capacity, 7, start);
        // Into an empty ring any record goes that fits at the end or at the start.
        const std::uint32_t size = record_size(payload, 0);
        const bool fits = size <= capacity - start || size <= start;
        const bool pushed = push(m, payload, 1);

        CHECK_EQ(fits, pushed);
        if (pushed) CHECK_EQ(1U, pop(m, payload));
        CHECK_EQ(0U, pop(m, payload));
      }
    }
  }
}

TEST(a_ring_behaves_like_a_deque) {
  for (const std::uint32_t capacity : {128U, 1024U, 4096U}) {
    // The item count passes 2^32 on the way.
    Memory m(capacity, 0xFFFFFF00U);
    std::deque<std::pair<std::uint64_t, std::uint32_t>> model;
    check::Random random{capacity};
    std::uint64_t number = 0;
    for (int step = 0; step < 20000; ++step) {
      if (random.below(2) == 0) {
        const auto payload = static_cast<std::uint32_t>(random.below(capacity / 4));
        if (push(m, payload, number + 1)) model.emplace_back(++number, payload);
      } else if (model.empty()) {
        CHECK_EQ(0U, pop(m, 0));
      } else {
        CHECK_EQ(model.front().first, pop(m, model.front().second));
        model.pop_front();
      }
      const RingWord written = RingWord::unpack(m.ring.header->write_word.load());
      const RingWord read = RingWord::unpack(m.ring.header->read_word.load());
      CHECK_EQ(model.size(), std::size_t{written.items - read.items});
    }
  }
}

TEST(what_the_writer_publishes_the_reader_sees_whole) {
  Memory m(1024);
  const std::uint64_t n = check::kSanitized ? 20'000 : 200'000;
  std::thread writer([&] {
    for (std::uint64_t i = 1; i <= n; ++i)
      while (!push(m, static_cast<std::uint32_t>(i % 90), i)) platform::cpu_pause();
  });
  std::uint64_t wrong = 0;
  for (std::uint64_t i = 1; i <= n; ++i) {
    std::uint64_t got = 0;
    while ((got = pop(m, static_cast<std::uint32_t>(i % 90))) == 0) platform::cpu_pause();
    if (got != i) ++wrong;
  }
  writer.join();

  CHECK_EQ(0U, wrong);
}

TEST(garbage_never_parses_to_something_outside) {
  check::Random random{4711};
  Memory m(512);
  for (int round = 0; round < 200'000; ++round) {
    const auto index = static_cast<std::uint32_t>(random.below(40)) * 16;
    std::uint64_t word = random.next();
    if (random.below(2) == 0)  // near the truth, where the mistakes would be
      word = RecordHeader{static_cast<std::uint32_t>(random.below(40)) * 16,
                          static_cast<std::uint32_t>(random.below(600)),
                          static_cast<RecordKind>(random.below(6)), random.below(2) == 0,
                          static_cast<std::uint8_t>(random.below(70))}
                 .pack();
    if (index < 512) m.ring.word_at(index).store(word);
    RecordHeader header{};
    std::uint32_t start = 0;
    if (!parse_record(m.ring, index, header, start)) continue;

    CHECK(start + header.size <= 512U);
    CHECK(kRecordHeader + header.blocks * sizeof(BlockRef) + header.payload <= header.size);
  }
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
