// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// hand_over.cpp - D5 under Relacy: a block goes from a sender that dies to a receiver, over the
// core's own ring, while a reaper looks for what the dead had. The holder's word is changed as
// `allocate`, `receive_entered`, `free_if_held` and `reap_blocks` change it. Who frees the block
// writes all over it, so a block that is freed under its receiver is a race, one that is freed
// twice or never fails a check.
#include "ring_rows.hpp"
#include "simulate.hpp"

namespace {

using namespace ipcbuf;
using R = RelacyAtomics;

constexpr std::uint32_t kCapacity = 128;
constexpr std::uint32_t kRecord = record_size(0, 1);
constexpr std::uint64_t kFree = 0, kSender = 1, kReceiver = 2;

struct HandOverTest : rl::test_suite<HandOverTest, 3> {
  RelacyRingHeader header;
  rl::atomic<std::uint64_t> words[kCapacity / 8];
  rl::atomic<std::uint64_t> sender_cache, receiver_cache;
  rl::atomic<std::uint64_t> holder;
  rl::atomic<int> sender_is_dead;
  rl::var<int> body;
  rl::var<int> frees;
  std::byte bytes[kCapacity];
  Ring<R> ring;

  void before() {
    for (auto* word : {&header.write_word, &header.read_word, &sender_cache, &receiver_cache})
      word->store(0, rl::mo_relaxed, $);
    for (auto& w : words) w.store(0, rl::mo_relaxed, $);
    holder.store(kFree, rl::mo_relaxed, $);
    sender_is_dead.store(0, rl::mo_relaxed, $);
    frees($) = 0;
    ring.header = &header;
    ring.data = bytes;
    ring.capacity = kCapacity;
    ring.words = words;
  }

  void thread(unsigned index) { index == 0 ? send() : index == 1 ? receive() : reap(); }

  void send() {
    std::uint64_t nobody = kFree;
    RL_ASSERT(R::compare_exchange(holder, nobody, kSender));  // K1 acquire
    body($) = 7;
    if (rl::rand(4) != 0) {  // or it dies before it has published
      RingWriter<R> writer(ring, sender_cache);
      RL_ASSERT(writer.room(kRecord) != nullptr);
      writer.publish({kRecord, 0, RecordKind::kRaw, false, 1}, 0);  // P1
    }
    sender_is_dead.store(1, rl::mo_release, $);  // the kernel says so behind its last store
  }

  void receive() {
    for (;;) {
      const bool last = sender_is_dead.load(rl::mo_acquire, $) != 0;  // D7
      RingReader<R> reader(ring, receiver_cache);
      RecordHeader record{};
      std::uint64_t cumulative = 0;
      const std::byte* at = nullptr;
      if (reader.front(record, cumulative, at) == Front::kRecord) {
#ifdef IPCBUF_SWAP_D5  // as the protocol must not be
        reader.pop(record);
        R::store_release(holder, kReceiver);
#else
        R::store_release(holder, kReceiver);  // D5: claim, then advance
        reader.pop(record);
#endif
        RL_ASSERT(body($) == 7);
        free_if_held(kReceiver);
        return;
      }
      if (last) return;
      rl::yield(1, $);
    }
  }

  void reap() {
    while (sender_is_dead.load(rl::mo_acquire, $) == 0) rl::yield(1, $);
    if (R::load_acquire(holder) != kSender) return;  // K2
    // reach: in a ring, or read meanwhile?
    const RingWord read = RingWord::unpack(R::load_acquire(header.read_word));
    const RingWord write = RingWord::unpack(R::load_acquire(header.write_word));
    if (write.items != read.items) return;  // the receiver's, or of who buries the channel
    free_if_held(kSender);
  }

  void free_if_held(std::uint64_t who) {
    std::uint64_t expected = who;
    if (who == kReceiver) {
      body($) = 0;
      frees($) = frees($) + 1;
      RL_ASSERT(R::compare_exchange(holder, expected, kFree));  // K1 release
    } else if (R::compare_exchange(holder, expected, kFree)) {
      body($) = 0;
      frees($) = frees($) + 1;
    }
  }

  void after() { RL_ASSERT(frees($) == 1 && holder.load(rl::mo_relaxed, $) == kFree); }
};

}  // namespace

int main(int argc, char** argv) {
  return exit_code(is_sound<HandOverTest>("hand over", executions_of(argc, argv, 200'000)));
}
