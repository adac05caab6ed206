// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ring.cpp - P1 and P2 of core/ring.hpp under Relacy: a small ring that wraps, with records
// whose bodies are plain variables. A read that no pair orders is reported as a race.

#include "ring_rows.hpp"
#include "simulate.hpp"

namespace {

using namespace ipcbuf;
using R = RelacyAtomics;

constexpr int kMessages = 4;
constexpr std::uint32_t kCapacity = 80;  // two records of 32 bytes, and room for a skip mark
constexpr std::uint32_t kRecord = record_size(16, 0);

struct RingTest : rl::test_suite<RingTest, 2> {
  RelacyRingHeader header;
  rl::atomic<std::uint64_t> words[kCapacity / 8];
  rl::atomic<std::uint64_t> sender_cache;
  rl::atomic<std::uint64_t> receiver_cache;
  rl::var<int> bodies[kCapacity / 16];
  std::byte bytes[kCapacity];
  Ring<R> ring;

  void before() {
    header.write_word.store(0, rl::mo_relaxed, $);
    header.read_word.store(0, rl::mo_relaxed, $);
    sender_cache.store(0, rl::mo_relaxed, $);
    receiver_cache.store(0, rl::mo_relaxed, $);
    for (auto& w : words) w.store(0, rl::mo_relaxed, $);
    ring.header = &header;
    ring.data = bytes;
    ring.capacity = kCapacity;
    ring.words = words;
  }

  void thread(unsigned index) { index == 0 ? send() : receive(); }

  void send() {
    for (int i = 0; i < kMessages; ++i) {
      for (;;) {
        RingWriter<R> writer(ring, sender_cache);
        std::byte* at = writer.room(kRecord);
        if (at != nullptr) {
          bodies[(at - bytes) / 16]($) = i;
          writer.publish({kRecord, 16, RecordKind::kRaw, false, 0}, static_cast<unsigned>(i));
          break;
        }
        rl::yield(1, $);
      }
    }
  }

  void receive() {
    for (int i = 0; i < kMessages; ++i) {
      for (;;) {
        RingReader<R> reader(ring, receiver_cache);
        RecordHeader record{};
        std::uint64_t cumulative = 0;
        const std::byte* body = nullptr;
        const Front front = reader.front(record, cumulative, body);
        RL_ASSERT(front != Front::kCorrupted);
        if (front == Front::kRecord) {
          RL_ASSERT(record.size == kRecord && cumulative == static_cast<unsigned>(i));
          const int value = bodies[(body - kRecordHeader - bytes) / 16]($);
          RL_ASSERT(value == i);
          reader.pop(record);
          break;
        }
        rl::yield(1, $);
      }
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  return exit_code(is_sound<RingTest>("ring", executions_of(argc, argv, 200'000)));
}
