// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_run_heap.cpp - run_heap.hpp: runs against a model, growth to the end, rebuilding.
#include <sys/stat.h>

#include <map>

#include "fixture.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/run_heap.hpp"

namespace {

using namespace fixture;

TEST(a_new_heap_is_one_free_run) {
  const auto s = make_segment();
  const Census census = sound(*s);

  CHECK_EQ(census.committed_bytes, census.free_bytes + census.returned_bytes);
  CHECK_EQ(census.committed_bytes, census.largest_free);
}

TEST(an_index_that_was_written_over_is_not_believed) {
  for (int which = 0; which < 3; ++which) {
    const auto s = make_segment();
    RunHeap heap(*s);
    Failure why;
    std::uint32_t runs[3];
    for (std::uint32_t& run : runs) CHECK_EQ(Status::kOk, heap.allocate(1, run, why));
    CHECK_EQ(Status::kOk, heap.free(runs[0]));
    CHECK_EQ(2U, s->header().index_size.load());
    std::uint32_t first = 0;
    if (which == 0) {  // runs that are in use
      s->run_index()[0] = s->run_index()[1] = runs[2];
      CHECK_EQ(Status::kCorrupted, heap.allocate(1, first, why));
    } else {  // a way back that leads outside, or to another run
      s->page(runs[0]).index_pos = which == 1 ? 0xFFFFFF0 : 1 - s->page(runs[0]).index_pos;
      (void)heap.free(runs[1]);
    }
    CHECK(s->is_poisoned());
  }
}

TEST(runs_do_not_overlap_and_merge_back_into_one) {
  const auto s = make_segment();
  RunHeap heap(*s);
  std::map<std::uint32_t, std::uint32_t> model;  // first page -> pages
  check::Random random{11};
  Failure why;
  for (int step = 0; step < (check::kSanitized ? 3000 : 20'000); ++step) {
    if (model.size() < 60 && random.below(100) < 60) {
      const auto pages =
          static_cast<std::uint32_t>(1 + random.below(random.below(10) == 0 ? 200 : 9));
      std::uint32_t first = 0;
      const Status status = heap.allocate(pages, first, why);
      if (status == Status::kExhausted) continue;
      CHECK_EQ(Status::kOk, status);
      const auto after = model.lower_bound(first);
      CHECK(after == model.end() || first + pages <= after->first);
      CHECK(after == model.begin() || std::prev(after)->first + std::prev(after)->second <= first);
      model[first] = pages;
    } else if (!model.empty()) {
      auto it = model.begin();
      std::advance(it, static_cast<long>(random.below(model.size())));
      CHECK_EQ(Status::kOk, heap.free(it->first));
      model.erase(it);
    }
    if (step % 997 == 0) {
      const Census census = sound(*s);
      std::uint64_t pages = 0;
      for (const auto& run : model) pages += run.second;
      CHECK_EQ(pages << kPageShift, census.committed_bytes - census.free_bytes);
      CHECK_EQ(model.size(), census.reserved_runs);
    }
  }
  for (const auto& run : model) CHECK_EQ(Status::kOk, heap.free(run.first));
  const Census census = sound(*s);

  CHECK_EQ(census.committed_bytes, census.largest_free);
}

TEST(growth_ends_at_max_size_with_the_numbers) {
  const auto s = make_segment(8U << 20);
  RunHeap heap(*s);
  Failure why;
  std::vector<std::uint32_t> runs;
  std::uint32_t first = 0;
  while (heap.allocate(16, first, why) == Status::kOk) runs.push_back(first);

  CHECK_EQ(Status::kExhausted, why.status);
  CHECK_EQ(std::string("max_size"), std::string(why.reason));
  CHECK_EQ(16U << kPageShift, why.requested);
  CHECK_EQ(8U << 20, why.committed);
  CHECK_EQ(8U << 20, why.max_size);
  CHECK_EQ(0U, why.free_bytes);
  CHECK_EQ(0U, why.largest_run);
  CHECK_EQ(512U / 16, runs.size());

  CHECK_EQ(Status::kOk, heap.free(runs[3]));
  CHECK_EQ(Status::kOk, heap.allocate(16, first, why));
  CHECK_EQ(runs[3], first);
  (void)sound(*s);
}

TEST(more_than_max_size_is_too_large) {
  const auto s = make_segment(1U << 20);
  Failure why;
  std::uint32_t first = 0;

  CHECK_EQ(Status::kTooLarge, RunHeap(*s).allocate(65, first, why));
  CHECK_EQ(Status::kTooLarge, RunHeap(*s).allocate(0, first, why));
  CHECK_EQ(Status::kOk, RunHeap(*s).allocate(64, first, why));
}

TEST(a_rebuilt_index_is_as_good_as_the_old_one) {
  const auto s = make_segment();
  RunHeap heap(*s);
  Failure why;
  std::vector<std::uint32_t> runs(20);
  for (auto& run : runs) CHECK_EQ(Status::kOk, heap.allocate(3, run, why));
  for (std::size_t i = 0; i < runs.size(); i += 2) CHECK_EQ(Status::kOk, heap.free(runs[i]));
  const Census before = sound(*s);
  s->header().index_size.store(7);
  s->header().free_pages.store(1);

  CHECK(heap.rebuild());

  const Census after = sound(*s);
  CHECK_EQ(before.free_bytes, after.free_bytes);
  CHECK_EQ(before.largest_free, after.largest_free);
  std::uint64_t bytes = 0;
  std::uint64_t largest = 0;
  heap.measure(bytes, largest);
  CHECK_EQ(after.free_bytes, bytes);
  CHECK_EQ(after.largest_free, largest);
}

TEST(an_impossible_walk_is_not_rebuilt) {
  const auto s = make_segment();
  const std::uint64_t word = s->run(0).load();
  for (const std::uint64_t bad : {std::uint64_t{0}, Run{RunState::kFree, 0, 0}.pack(),
                                  Run{RunState::kFree, 1U << 27, 0}.pack(), std::uint64_t{7}}) {
    s->run(0).store(bad);
    CHECK(!RunHeap(*s).rebuild());
  }
  s->run(0).store(word);

  CHECK(RunHeap(*s).rebuild());
  (void)sound(*s);
}

/// Bytes of the file that are in memory.
std::uint64_t in_memory(Segment& s) {
  struct stat file{};
  CHECK_EQ(0, ::fstat(s.fd(), &file));
  return static_cast<std::uint64_t>(file.st_blocks) * 512;
}

/// A run of that many pages, taken and freed again: the heap has as much from here on.
void burst(Segment& s, std::uint32_t pages) {
  RunHeap heap(s);
  Failure why;
  std::uint32_t run = 0;
  CHECK_EQ(Status::kOk, heap.allocate(pages, run, why));
  CHECK_EQ(Status::kOk, heap.free(run));
}

TEST(what_is_given_back_leaves_memory_and_is_reserved_again_before_use) {
  const auto s = make_segment();
  RunHeap heap(*s);
  burst(*s, 2000);
  const Census before = sound(*s);
  const std::uint64_t used = in_memory(*s);

  const std::uint64_t given = std::uint64_t{heap.give_back(UINT32_MAX)} << kPageShift;
  const Census given_back = sound(*s);
  CHECK_EQ(before.free_bytes, given);
  CHECK_EQ(given, given_back.returned_bytes);
  CHECK_EQ(0U, given_back.free_bytes);
  CHECK_EQ(used - given, in_memory(*s));
  CHECK_EQ(given, s->header().returned_bytes.load());

  Failure why;
  std::uint32_t run = 0;
  CHECK_EQ(Status::kOk, heap.allocate(300, run, why));
  const Census again = sound(*s);
  CHECK_EQ(given - (300U << kPageShift), again.returned_bytes);
  CHECK_EQ(used - again.returned_bytes, in_memory(*s));
  CHECK_EQ(Status::kOk, heap.free(run));
  (void)sound(*s);
}

TEST(a_run_across_free_and_returned_ones_is_found) {
  const auto s = make_segment(16U << 20);
  RunHeap heap(*s);
  burst(*s, 1024);
  CHECK_EQ(500U, heap.give_back(500));
  CHECK_EQ(200U, heap.give_back(200));
  Failure why;
  std::uint32_t run = 0;

  CHECK_EQ(Status::kOk, heap.allocate(1024, run, why));

  CHECK_EQ(0U, run);
  const Census census = sound(*s);
  CHECK_EQ(0U, census.free_bytes + census.returned_bytes);
  CHECK_EQ(Status::kExhausted, heap.allocate(1, run, why));
  CHECK_EQ(Status::kOk, heap.free(0));
  CHECK_EQ(16U << 20, sound(*s).free_bytes);
}

TEST(growth_behind_a_returned_run_uses_it) {
  const auto s = make_segment(32U << 20);
  RunHeap heap(*s);
  burst(*s, 1100);
  (void)heap.give_back(UINT32_MAX);
  Failure why;
  std::uint32_t run = 0;

  CHECK_EQ(Status::kOk, heap.allocate(2048, run, why));

  CHECK_EQ(0U, run);
  CHECK_EQ(32U << 20, sound(*s).committed_bytes);
}

TEST(runs_given_back_at_random_stay_apart) {
  const auto s = make_segment();
  RunHeap heap(*s);
  std::map<std::uint32_t, std::uint32_t> model;
  check::Random random{12};
  Failure why;
  for (int step = 0; step < (check::kSanitized ? 500 : 2000); ++step) {
    if (random.below(20) == 0) {
      (void)heap.give_back(static_cast<std::uint32_t>(128 + random.below(200)));
    } else if (model.size() < 30 && random.below(100) < 55) {
      const auto pages = static_cast<std::uint32_t>(1 + random.below(200));
      std::uint32_t first = 0;
      if (heap.allocate(pages, first, why) != Status::kOk) continue;
      std::memset(s->payload(s->page_offset(first)), 1, 64);
      model[first] = pages;
    } else if (!model.empty()) {
      auto it = model.begin();
      std::advance(it, static_cast<long>(random.below(model.size())));
      CHECK_EQ(Status::kOk, heap.free(it->first));
      model.erase(it);
    }
    if (step % 97 != 0) continue;
    const Census census = sound(*s);
    std::uint64_t pages = 0;
    for (const auto& run : model) pages += run.second;
    CHECK_EQ(pages << kPageShift,
             census.committed_bytes - census.free_bytes - census.returned_bytes);
    CHECK(heap.rebuild());
    (void)sound(*s);
  }
}

TEST(only_what_nobody_needed_for_a_second_is_given_back_by_itself) {
  const auto s = make_segment(256U << 20);
  RunHeap heap(*s);
  burst(*s, 10'000);
  burst(*s, 3000);
  const std::uint32_t unused = s->committed_pages() - 3000;
  heap.give_back_surplus();
  CHECK_EQ(0U, sound(*s).returned_bytes);  // the burst was a moment ago

  auto& since = s->header().least_since;
  since.store(1);
  heap.give_back_surplus();
  CHECK_EQ(std::uint64_t{RunHeap::kAtOnce} << kPageShift, sound(*s).returned_bytes);
  // The rest was not needed either: it goes soon, and not at once.
  const auto now = static_cast<std::uint64_t>(platform::monotonic_ns());
  CHECK(since.load() + 900'000'000 <= now && since.load() > 1);
  since.store(now);
  heap.give_back_surplus();
  CHECK_EQ(std::uint64_t{RunHeap::kAtOnce} << kPageShift, sound(*s).returned_bytes);
  burst(*s, 3000);
  since.store(1);
  heap.give_back_surplus();

  CHECK_EQ(std::uint64_t{unused - RunHeap::kWarm} << kPageShift, sound(*s).returned_bytes);
  burst(*s, 3000);
  CHECK_EQ(std::uint64_t{unused - RunHeap::kWarm} << kPageShift, sound(*s).returned_bytes);
}

TEST(no_page_of_a_freed_slab_leads_to_a_block) {
  const auto s = make_segment();
  Failure why;
  std::uint64_t first = 0;
  std::uint64_t second = 0;
  ThreadHeap& heap = ThreadHeap::of(*s);
  CHECK_EQ(Status::kOk, heap.allocate(100'000, first, why));
  CHECK_EQ(Status::kOk, heap.allocate(100'000, second, why));
  CHECK_EQ(Status::kOk, free_block(*s, first));
  CHECK_EQ(Status::kOk, free_block(*s, second));
  heap.trim();  // the second merges with the run in front of it
  BlockPlace place{};

  CHECK(!s->place(first, place));
  CHECK(!s->place(second, place));
  (void)sound(*s);
}

TEST(a_double_free_of_a_run_poisons) {
  const auto s = make_segment();
  RunHeap heap(*s);
  Failure why;
  std::uint32_t run = 0;
  CHECK_EQ(Status::kOk, heap.allocate(3, run, why));
  CHECK_EQ(Status::kOk, heap.free(run));

  CHECK_EQ(Status::kCorrupted, heap.free(run));
  CHECK(s->is_poisoned());
  CHECK_EQ(Status::kCorrupted, heap.allocate(3, run, why));
}

TEST(threads_share_the_heap) {
  const auto s = make_segment();
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      check::Random random{t};
      RunHeap heap(*s);
      std::vector<std::uint32_t> mine;
      Failure why;
      for (int i = 0; i < (check::kSanitized ? 300 : 3000); ++i) {
        std::uint32_t run = 0;
        if (mine.size() < 10 && heap.allocate(static_cast<std::uint32_t>(1 + random.below(8)), run,
                                              why) == Status::kOk) {
          mine.push_back(run);
        } else if (!mine.empty()) {
          CHECK_EQ(Status::kOk, heap.free(mine.back()));
          mine.pop_back();
        }
      }
      for (const std::uint32_t run : mine) CHECK_EQ(Status::kOk, heap.free(run));
    });
  for (auto& thread : threads) thread.join();
  const Census census = sound(*s);

  CHECK_EQ(census.committed_bytes, census.largest_free);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
