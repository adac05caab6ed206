// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_block.cpp - block.hpp: who holds a block, and what wrong frees answer.
#include "fixture.hpp"
#include "ipcbuf/block.hpp"
#include "ipcbuf/run_heap.hpp"

namespace {

using namespace fixture;

Holder holder_of(Segment& s, std::uint64_t at) {
  BlockPlace p{};
  Holder holder{};
  CHECK(s.place(at, p));
  CHECK(read_holder(s, p, holder));
  return holder;
}

TEST(a_block_is_held_by_the_process_that_allocated_it) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 100);

  CHECK(holder_of(*s, at) == by_process(s->token()));
  CHECK_EQ(Status::kOk, free_block(*s, at));
  CHECK(holder_of(*s, at) == kNobody);
}

TEST(a_double_free_is_refused_and_harms_nothing) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 100);
  CHECK_EQ(Status::kOk, free_block(*s, at));

  CHECK_EQ(Status::kCorrupted, free_block(*s, at));
  CHECK(!s->is_poisoned());
  (void)sound(*s);
}

TEST(a_foreign_free_is_refused_and_harms_nothing) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 100);
  const pid_t pid = check::in_child([&] { CHECK_EQ(Status::kCorrupted, free_block(*s, at)); });

  CHECK_EQ(0, check::end_of(pid));
  CHECK(holder_of(*s, at) == by_process(s->token()));
  CHECK(!s->is_poisoned());
}

TEST(an_overwritten_header_poisons_at_the_next_touch) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 100);
  s->block(at).holder.store(0x4141414141414141);

  CHECK_EQ(Status::kCorrupted, free_block(*s, at));
  CHECK(s->is_poisoned());
  Failure why;
  std::uint64_t other = 0;
  CHECK_EQ(Status::kCorrupted, ThreadHeap::of(*s).allocate(1'000'000, other, why));
}

TEST(an_overwritten_header_in_an_ownerless_slab_stops_nobody) {
  const auto s = make_segment();
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::thread([&] { a = allocate(*s, 100), b = allocate(*s, 100); }).join();
  s->block(a).holder.store(0);  // free by its kind, impossible by its check value

  CHECK_EQ(Status::kOk, free_block(*s, b));
  steal_empty_slabs(*s);
  CHECK(!take_census(*s, true).problems.empty());
}

TEST(only_the_start_of_a_block_is_a_place) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 1000);
  BlockPlace p{};
  CHECK(s->place(at, p));
  for (const std::uint64_t wrong :
       {at + 1, at + kCacheLine, at - kCacheLine, std::uint64_t{0}, s->constants().payload - 64,
        s->constants().window, s->constants().window - kPageSize, ~0UL, ~0UL - 63})
    CHECK(!s->place(wrong, p));
}

TEST(a_slab_in_use_is_not_retired) {
  const auto s = make_segment();
  const std::uint64_t a = allocate(*s, 100);
  const std::uint64_t b = allocate(*s, 100);
  BlockPlace p{};
  CHECK(s->place(b, p));

  CHECK(!retire_slab(*s, p.head));
  CHECK(holder_of(*s, b) == by_process(s->token()));
  CHECK_EQ(Status::kOk, free_block(*s, a));
  CHECK_EQ(Status::kOk, free_block(*s, b));
  CHECK(retire_slab(*s, p.head));
  CHECK_EQ(0U, sound(*s).slabs);
}

TEST(the_last_free_gives_an_ownerless_slab_back) {
  const auto s = make_segment();
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::thread([&] { a = allocate(*s, 100), b = allocate(*s, 100); }).join();
  CHECK_EQ(1U, sound(*s).orphan_slabs);

  CHECK_EQ(Status::kOk, free_block(*s, a));
  CHECK_EQ(1U, sound(*s).orphan_slabs);
  CHECK_EQ(Status::kOk, free_block(*s, b));
  CHECK_EQ(0U, sound(*s).slabs);
}

TEST(frees_orphaning_and_stealing_at_once_lose_no_slab) {
  const auto s = make_segment();
  const int rounds = check::kSanitized ? 30 : 400;
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::uint64_t> blocks;
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    std::thread owner([&] {
      for (int i = 0; i < 24; ++i) blocks.push_back(allocate(*s, 100));
      ready = 1;
      while (ready < 4) std::this_thread::yield();
    });  // its slab becomes ownerless here
    while (ready == 0) std::this_thread::yield();
    for (std::size_t t = 0; t < 2; ++t)
      threads.emplace_back([&, t] {
        ++ready;
        while (ready < 4) std::this_thread::yield();
        for (std::size_t i = t; i < blocks.size(); i += 2)
          CHECK_EQ(Status::kOk, free_block(*s, blocks[i]));
      });
    threads.emplace_back([&] {
      ++ready;
      while (ready < 4) std::this_thread::yield();
      steal_empty_slabs(*s);
    });
    owner.join();
    for (auto& thread : threads) thread.join();
    CHECK_EQ(0U, sound(*s).slabs);
  }
}

TEST(a_shared_block_lives_until_the_last_share_is_dropped) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 3000);
  // Two shares in our own name, so that one process can play both.
  CHECK_EQ(Status::kOk, share_block(*s, at, s->token()));
  CHECK_EQ(1U, sound(*s).shared_blocks);
  CHECK_EQ(Status::kOk, share_block(*s, at, s->token()));

  for (int share = 0; share < 3; ++share) {
    CHECK_EQ(1U, sound(*s).shared_blocks);
    CHECK_EQ(Status::kOk, drop_block(*s, at));
  }
  const Census census = sound(*s);
  CHECK_EQ(0U, census.shared_blocks);
  CHECK_EQ(0U, census.entries);
  CHECK(holder_of(*s, at) == kNobody);
}

TEST(a_shared_block_cannot_be_freed_by_one_alone) {
  const auto s = make_segment();
  const std::uint64_t at = allocate(*s, 3000);
  CHECK_EQ(Status::kOk, share_block(*s, at, s->token()));

  CHECK_EQ(Status::kCorrupted, free_block(*s, at));
  CHECK_EQ(1U, sound(*s).shared_blocks);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
