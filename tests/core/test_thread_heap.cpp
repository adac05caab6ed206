// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_thread_heap.cpp - thread_heap.hpp: blocks of every size against a model, threads, the end
// of the memory.
#include <sys/stat.h>

#include <map>
#include <mutex>

#include "fixture.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace {

using namespace fixture;

void fill(Segment& s, std::uint64_t at, std::uint64_t length, std::uint64_t number) {
  std::memset(s.payload(at), static_cast<int>(number & 255), length);
}
bool is_filled(Segment& s, std::uint64_t at, std::uint64_t length, std::uint64_t number) {
  for (std::uint64_t i = 0; i < length; ++i)
    if (s.payload(at)[i] != static_cast<std::byte>(number & 255)) return false;
  return true;
}

TEST(a_block_of_every_size_keeps_its_exact_length) {
  const auto s = make_segment();
  for (std::uint64_t length = 0; length < 70'000; length += length < 3000 ? 1 : 501) {
    const std::uint64_t at = allocate(*s, length);
    BlockPlace p{};
    CHECK(s->place(at, p));
    CHECK(p.size() >= length + sizeof(BlockHeader));
    CHECK_EQ(length, s->block(at).length.load());
    fill(*s, at, length, 7);
    CHECK_EQ(Status::kOk, free_block(*s, at));
  }
  (void)sound(*s);
}

TEST(blocks_behave_like_malloc) {
  const auto s = make_segment();
  struct Mine {
    std::uint64_t length;
    std::uint64_t number;
  };
  std::map<std::uint64_t, Mine> model;
  check::Random random{5};
  for (std::uint64_t step = 0; step < (check::kSanitized ? 4000 : 40'000); ++step) {
    if (model.size() < 200 && random.below(100) < 55) {
      const std::uint64_t limit = random.below(20) == 0  ? 200'000
                                  : random.below(4) == 0 ? 9000
                                                         : 600;
      const std::uint64_t length = 1 + random.below(limit);
      const std::uint64_t at = allocate(*s, length);
      CHECK(!model.contains(at));
      fill(*s, at, length, step);
      model[at] = {length, step};
    } else if (!model.empty()) {
      auto it = model.begin();
      std::advance(it, static_cast<long>(random.below(model.size())));
      CHECK(is_filled(*s, it->first, it->second.length, it->second.number));
      CHECK_EQ(Status::kOk, free_block(*s, it->first));
      model.erase(it);
    }
  }
  Census census = sound(*s);
  CHECK_EQ(model.size(), census.process_blocks);
  for (const auto& block : model) CHECK_EQ(Status::kOk, free_block(*s, block.first));
  ThreadHeap::of(*s).trim();
  census = sound(*s);

  CHECK_EQ(0U, census.slabs);
  CHECK_EQ(census.committed_bytes, census.largest_free);
}

TEST(the_block_freed_last_comes_back_first) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 100'000);
  CHECK_EQ(Status::kOk, free_block(*s, at));

  CHECK_EQ(at, allocate(*s, 100'000));
}

TEST(threads_free_each_others_blocks) {
  const auto s = make_segment();
  constexpr int kThreads = 4;
  std::mutex mutex;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> common;  // block, number
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      check::Random random{t + 77};
      for (int i = 0; i < (check::kSanitized ? 500 : 10'000); ++i) {
        const std::uint64_t number = random.next();
        const std::uint64_t length = 8 + random.below(random.below(50) == 0 ? 40'000 : 500);
        const std::uint64_t at = allocate(*s, length);
        std::memcpy(s->payload(at), &number, 8);
        std::pair<std::uint64_t, std::uint64_t> other;
        {
          const std::lock_guard lock(mutex);
          common.emplace_back(at, number);
          std::swap(common[random.below(common.size())], common.back());
          if (common.size() < 64) continue;
          other = common.back();
          common.pop_back();
        }
        std::uint64_t found = 0;
        std::memcpy(&found, s->payload(other.first), 8);
        CHECK_EQ(other.second, found);
        CHECK_EQ(Status::kOk, free_block(*s, other.first));
      }
    });
  for (auto& thread : threads) thread.join();
  for (const auto& block : common) CHECK_EQ(Status::kOk, free_block(*s, block.first));
  const Census census = sound(*s);

  CHECK_EQ(0U, census.slabs);  // of threads that have ended, nothing is left
  CHECK_EQ(census.committed_bytes, census.largest_free);
}

TEST(full_means_full_and_a_free_helps) {
  const auto s = make_segment(4U << 20);
  std::vector<std::uint64_t> blocks;
  Failure why;
  std::uint64_t at = 0;
  while (ThreadHeap::of(*s).allocate(60'000, at, why) == Status::kOk) blocks.push_back(at);

  CHECK_EQ(Status::kExhausted, why.status);
  CHECK_EQ(60'000U, why.requested);
  CHECK_EQ(4U << 20, why.max_size);
  CHECK_EQ(4U << 20, why.committed);
  CHECK_EQ((4U << 20) / (4 * kPageSize), blocks.size());
  CHECK_EQ(Status::kOk, free_block(*s, blocks.back()));
  blocks.pop_back();
  CHECK_EQ(Status::kOk, ThreadHeap::of(*s).allocate(60'000, at, why));
  blocks.push_back(at);

  for (const std::uint64_t block : blocks) CHECK_EQ(Status::kOk, free_block(*s, block));
  CHECK_EQ(Status::kOk, ThreadHeap::of(*s).allocate(3'900'000, at, why));  // trims what it must
  CHECK_EQ(Status::kOk, free_block(*s, at));
  (void)sound(*s);
}

TEST(more_than_the_segment_is_refused_at_once) {
  const auto s = make_segment(4U << 20);
  Failure why;
  std::uint64_t at = 0;
  for (const std::uint64_t length : {4UL << 20, 1UL << 40, ~0UL, ~0UL - 64}) {
    const Status status = ThreadHeap::of(*s).allocate(length, at, why);

    CHECK_EQ(Status::kTooLarge, status);
    CHECK_EQ(length, why.requested);
  }
}

TEST(empty_slabs_of_another_thread_are_taken_under_pressure) {
  const auto s = make_segment(4U << 20);
  std::atomic<int> stage{0};
  std::thread other([&] {
    const std::uint64_t at = allocate(*s, 1'500'000);
    CHECK_EQ(Status::kOk, free_block(*s, at));  // stays warm in the other thread
    stage = 1;
    while (stage != 2) platform::cpu_pause();
    CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 1000)));  // its heap still works
  });
  while (stage != 1) platform::cpu_pause();

  const std::uint64_t at = allocate(*s, 3'500'000);

  CHECK_EQ(Status::kOk, free_block(*s, at));
  ThreadHeap::of(*s).trim();
  stage = 2;
  other.join();
  (void)sound(*s);
}

TEST(dead_processes_give_their_memory_to_who_needs_it) {
  const auto s = make_segment(4U << 20);
  const pid_t pid = check::in_child([&] { (void)allocate(*s, 3'000'000); });
  CHECK_EQ(0, check::end_of(pid));

  const std::uint64_t at = allocate(*s, 3'000'000);

  CHECK_EQ(Status::kOk, free_block(*s, at));
  (void)sound(*s);
}

TEST(large_slabs_that_stood_unused_go_back_when_the_thread_settles) {
  const auto s = make_segment(256U << 20);
  ThreadHeap& heap = ThreadHeap::of(*s);
  std::vector<std::uint64_t> blocks(20);
  for (auto& block : blocks) block = allocate(*s, 4U << 20);
  for (const std::uint64_t block : blocks) CHECK_EQ(Status::kOk, free_block(*s, block));
  heap.settle();  // it may have settled by itself before, on a slow machine
  CHECK_EQ(Status::kOk, free_block(*s, allocate(*s, 4U << 20)));

  heap.settle();

  const Census census = sound(*s);
  CHECK(census.slabs >= 3 && census.slabs <= 6);  // the one in use, and 16 MiB of others
}

TEST(small_slabs_that_stood_unused_go_back_too_in_several_turns) {
  const auto s = make_segment(256U << 20);
  ThreadHeap& heap = ThreadHeap::of(*s);
  std::vector<std::uint64_t> blocks(20'000);  // 156 MiB in slabs of 21
  for (auto& block : blocks) block = allocate(*s, 5000);
  const std::uint64_t kept = blocks.back();
  blocks.pop_back();
  for (const std::uint64_t block : blocks) CHECK_EQ(Status::kOk, free_block(*s, block));
  CHECK(sound(*s).slabs > 900);

  for (int turn = 0; turn < 6; ++turn) heap.settle();  // twice over all of them, and once more

  CHECK(sound(*s).slabs <= 16 * 8 + 2);  // 16 MiB of 128 KiB, and the one with a block in use
  CHECK_EQ(Status::kOk, free_block(*s, kept));
  for (auto& block : blocks) block = allocate(*s, 5000);
  for (const std::uint64_t block : blocks) CHECK_EQ(Status::kOk, free_block(*s, block));
  (void)sound(*s);
}

TEST(a_slab_that_was_taken_and_given_back_is_not_touched_by_its_last_owner) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 4U << 20);
  CHECK_EQ(Status::kOk, free_block(*s, block));
  steal_empty_slabs(*s);
  CHECK(RunHeap(*s).give_back(UINT32_MAX) >= 256);
  struct stat before{};
  CHECK_EQ(0, ::fstat(s->fd(), &before));
  BlockPlace place{};
  CHECK(!s->place(block, place));

  ThreadHeap::of(*s).trim();

  struct stat after{};
  CHECK_EQ(0, ::fstat(s->fd(), &after));
  CHECK_EQ(before.st_blocks, after.st_blocks);
  (void)allocate(*s, 4U << 20);
  (void)sound(*s);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
