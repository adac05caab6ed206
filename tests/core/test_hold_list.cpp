// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_hold_list.cpp - hold_list.hpp: counts per process, long lists, and the chain's way back.
#include "fixture.hpp"
#include "ipcbuf/hold_list.hpp"

namespace {

using namespace fixture;

Hold transit(std::uint32_t id, std::uint32_t count = 1) { return {HoldKind::kTransit, id, count}; }

TEST(counts_of_one_holder_add_up) {
  const auto s = make_segment();
  HoldList list{};
  CHECK(is_unheld(*s, list));
  CHECK_EQ(Status::kOk, add_hold(*s, list, transit(5, 2)));
  CHECK_EQ(Status::kOk, add_hold(*s, list, transit(5)));

  CHECK(!drop_hold(*s, list, HoldKind::kTransit, 5, false));
  CHECK(!drop_hold(*s, list, HoldKind::kTransit, 5, false));
  CHECK(drop_hold(*s, list, HoldKind::kTransit, 5, false));
  CHECK(is_unheld(*s, list));
}

TEST(kinds_are_told_apart) {
  const auto s = make_segment();
  HoldList list{};
  CHECK_EQ(Status::kOk, add_hold(*s, list, transit(5)));

  CHECK(!drop_hold(*s, list, HoldKind::kProcess, 5, true));
  CHECK(!drop_hold(*s, list, HoldKind::kTicket, 5, true));
  CHECK(drop_hold(*s, list, HoldKind::kTransit, 5, true));
}

TEST(all_counts_of_a_holder_go_at_once) {
  const auto s = make_segment();
  HoldList list{};
  CHECK_EQ(Status::kOk, add_hold(*s, list, transit(5, 1000)));

  CHECK(drop_hold(*s, list, HoldKind::kTransit, 5, true));
}

TEST(a_list_grows_over_chained_entries) {
  const auto s = make_segment();
  HoldList list{};
  // Our own token lives, so nobody is reaped to make room: one process cell, many channels.
  constexpr std::uint32_t kHolders = 100;
  for (std::uint32_t i = 0; i < kHolders; ++i)
    CHECK_EQ(Status::kOk, add_hold(*s, list, Hold{HoldKind::kTicket, i, 1}));
  const std::uint64_t entries = (kHolders - 1) / kInlineHolds;
  CHECK_EQ(entries, take_census(*s, false).entries);

  for (std::uint32_t i = 0; i < kHolders; ++i)
    CHECK_EQ(i == kHolders - 1, drop_hold(*s, list, HoldKind::kTicket, i, false));
  // Emptied cells are used again before the list grows.
  for (std::uint32_t i = 0; i < kHolders; ++i)
    CHECK_EQ(Status::kOk, add_hold(*s, list, Hold{HoldKind::kTicket, i + 1000, 1}));
  CHECK_EQ(entries, take_census(*s, false).entries);

  adopt_chain(*s, list);
  const std::uint64_t chain = list.next.load();
  list.next.store(0);
  release_chain(*s, chain);
  CHECK_EQ(0U, take_census(*s, false).entries);
}

TEST(threads_add_and_drop_at_once) {
  const auto s = make_segment();
  HoldList list{};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (std::uint32_t i = 0; i < (check::kSanitized ? 200U : 5000U); ++i) {
        const std::uint32_t id = t * 16 + i % 16;
        CHECK_EQ(Status::kOk, add_hold(*s, list, Hold{HoldKind::kTicket, id, 2}));
        (void)drop_hold(*s, list, HoldKind::kTicket, id, false);
        (void)drop_hold(*s, list, HoldKind::kTicket, id, false);
      }
    });
  for (auto& thread : threads) thread.join();

  CHECK(is_unheld(*s, list));
}

TEST(entries_used_up_are_refused) {
  const auto s = make_segment(1U << 20);
  std::uint32_t index = 0;
  std::uint32_t n = 0;
  while (claim_entry(*s, index) == Status::kOk) ++n;

  CHECK_EQ(s->constants().max_entries, n);
  const std::uint64_t at = allocate(*s, 100);
  CHECK_EQ(Status::kTooMany, share_block(*s, at, s->token()));
  CHECK_EQ(Status::kOk, free_block(*s, at));
}

TEST(a_channel_gives_its_long_lists_back) {
  const auto s = make_segment();
  {
    Pair pair(*s, shared_ends());
    for (std::uint32_t i = 0; i < 50; ++i)
      CHECK_EQ(Status::kOk,
               add_hold(*s, hold_list(*s, pair.id, End::kSender), Hold{HoldKind::kTicket, i, 1}));
    CHECK(take_census(*s, false).entries > 0);
    for (std::uint32_t i = 0; i < 50; ++i)
      (void)drop_hold(*s, hold_list(*s, pair.id, End::kSender), HoldKind::kTicket, i, true);
    pair.tx.close(), pair.rx.close();
  }
  const Census census = sound(*s);

  CHECK_EQ(0U, census.channels);
  CHECK_EQ(0U, census.entries);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
