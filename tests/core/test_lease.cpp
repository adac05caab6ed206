// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_lease.cpp - lease.hpp: what a dead receiver had taken is delivered again.
#include <sys/mman.h>

#include "fixture.hpp"
#include "ipcbuf/lease.hpp"

namespace {

using namespace fixture;

ChannelOptions leased() {
  ChannelOptions options;
  options.lease = true;
  return options;
}

Status send_leased(Segment& s, SenderEnd& tx, std::uint64_t number) {
  const std::uint64_t at = allocate(s, sizeof number);
  std::memcpy(s.payload(at), &number, sizeof number);
  Outgoing m;
  m.payload_in_block = true;
  m.block_count = 1;
  m.blocks[0] = {at, sizeof number};
  Failure why;
  const Status status = tx.try_send(m, platform::kForever, why);
  if (status != Status::kOk) CHECK_EQ(Status::kOk, free_block(s, at));
  return status;
}
std::uint64_t number_in(Segment& s, const Incoming& m) {
  std::uint64_t number = 0;
  std::memcpy(&number, s.payload(m.blocks[0].offset), sizeof number);
  return number;
}
void finish(Segment& s, const Incoming& m) {
  end_lease(s, m.blocks[0].offset);
  CHECK_EQ(Status::kOk, free_block(s, m.blocks[0].offset));
}
void give_back(Segment& s, const Incoming& m) {
  CHECK_EQ(Status::kOk, hand_back(s, m.blocks[0].offset, by_process(s.token())));
}
/// Takes one message and checks its number.
Incoming take(Segment& s, ReceiverEnd& rx, std::uint64_t number) {
  Incoming m;
  CHECK_EQ(Status::kOk, rx.try_receive(m, platform::kForever));
  CHECK_EQ(number, number_in(s, m));
  CHECK(m.lease != 0);
  return m;
}

TEST(what_is_done_is_gone) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  for (std::uint64_t i = 0; i < 3; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
  for (std::uint64_t i = 0; i < 3; ++i) {
    const Incoming m = take(*s, pair.rx, i);
    CHECK(!m.is_redelivered);
    CHECK_EQ(1U, sound(*s).leased_blocks);
    finish(*s, m);
  }
  ThreadHeap::of(*s).trim();
  CHECK_EQ(0U, sound(*s).process_blocks);
}

TEST(what_is_given_back_comes_first_and_counts) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  for (std::uint64_t i = 0; i < 4; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
  const Incoming first = take(*s, pair.rx, 0);
  const Incoming second = take(*s, pair.rx, 1);
  give_back(*s, second);
  give_back(*s, first);
  CHECK_EQ(4U, pair.rx.pending());
  CHECK_EQ(2U, sound(*s).returned_blocks);
  CHECK_EQ(4U, sound(*s).messages);
  for (std::uint64_t i = 0; i < 4; ++i) {
    const Incoming m = take(*s, pair.rx, i);
    CHECK_EQ(i < 2, m.is_redelivered);
    finish(*s, m);
  }
  CHECK_EQ(0U, pair.rx.pending());
  (void)sound(*s);
}

TEST(more_than_a_receiver_remembers_come_in_order) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  constexpr std::uint64_t kMany = 200;
  for (std::uint64_t i = 0; i < kMany; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
  std::vector<Incoming> all;
  for (std::uint64_t i = 0; i < kMany; ++i) all.push_back(take(*s, pair.rx, i));
  check::Random random{7};
  while (!all.empty()) {
    std::swap(all[random.below(all.size())], all.back());
    give_back(*s, all.back());
    all.pop_back();
  }
  CHECK_EQ(kMany, pair.rx.pending());
  for (std::uint64_t i = 0; i < kMany; ++i) finish(*s, take(*s, pair.rx, i));
  (void)sound(*s);
}

TEST(the_dead_gives_back_what_it_had_not_done) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  for (std::uint64_t i = 0; i < 5; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
  const pid_t pid = check::in_child([&] {
    finish(*s, take(*s, pair.rx, 0));
    (void)take(*s, pair.rx, 1);
    end_lease(*s, take(*s, pair.rx, 2).blocks[0].offset);  // done, but not freed
    (void)send_leased(*s, pair.tx, 5);
  });
  CHECK_EQ(0, check::end_of(pid));
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(1U, sound(*s).returned_blocks);
  for (const std::uint64_t number : {1, 3, 4, 5}) finish(*s, take(*s, pair.rx, number));
  ThreadHeap::of(*s).trim();
  CHECK_EQ(0U, sound(*s).process_blocks);
}

TEST(what_was_never_sent_is_not_delivered) {
  const auto s = make_segment();
  ChannelOptions options = leased();
  options.max_items = 1;
  Pair pair(*s, options);
  CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, 0));
  const pid_t pid = check::in_child([&] {
    CHECK_EQ(Status::kFull, send_leased(*s, pair.tx, 1));
    (void)allocate(*s, 8);
  });
  CHECK_EQ(0, check::end_of(pid));
  CHECK_EQ(1, reap_all(*s));
  finish(*s, take(*s, pair.rx, 0));
  Incoming m;
  CHECK_EQ(Status::kEmpty, pair.rx.try_receive(m, platform::kForever));
}

TEST(a_waiting_receiver_gets_what_a_killed_one_had) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, 7));
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    (void)take(*s, pair.rx, 7);
    (void)!::write(ready[1], "x", 1);
    for (;;) ::pause();
  });
  char c = 0;
  CHECK_EQ(1L, ::read(ready[0], &c, 1));
  std::thread killer([&] { (void)check::kill_and_wait(pid); });
  Incoming m;
  Wait wait;
  Status status;
  const std::int64_t until = platform::monotonic_ns() + 20 * kSecond;
  while ((status = pair.rx.receive_slice(m, until, wait)) == Status::kSlice) {
  }
  pair.rx.finish_wait(wait);
  killer.join();
  CHECK_EQ(Status::kOk, status);
  CHECK_EQ(std::uint64_t{7}, number_in(*s, m));
  CHECK(m.is_redelivered);
  finish(*s, m);
  ::close(ready[0]), ::close(ready[1]);
}

TEST(the_end_waits_for_what_others_have_taken) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, 7));
  int ready[2];
  CHECK_EQ(0, ::pipe(ready));
  const pid_t pid = check::in_child([&] {
    pair.tx.close();
    (void)take(*s, pair.rx, 7);
    (void)!::write(ready[1], "x", 1);
    for (;;) ::pause();
  });
  char c = 0;
  CHECK_EQ(1L, ::read(ready[0], &c, 1));
  pair.tx.close();
  Incoming m;
  Wait wait;
  std::int64_t until = platform::monotonic_ns() + 100'000'000;
  Status status;
  while ((status = pair.rx.receive_slice(m, until, wait)) == Status::kSlice) {
  }
  CHECK_EQ(Status::kEmpty, status);  // not ended: it may come back
  (void)check::kill_and_wait(pid);
  until = platform::monotonic_ns() + 20 * kSecond;
  while ((status = pair.rx.receive_slice(m, until, wait)) == Status::kSlice) {
  }
  CHECK_EQ(Status::kOk, status);
  CHECK_EQ(Status::kEnded, pair.rx.receive_slice(m, until, wait));  // our own does not count
  finish(*s, m);
  pair.rx.finish_wait(wait);
  ::close(ready[0]), ::close(ready[1]);
}

TEST(a_channel_that_ends_frees_what_came_back) {
  const auto s = make_segment();
  Incoming kept;
  {
    Pair pair(*s, leased());
    for (std::uint64_t i = 0; i < 3; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
    give_back(*s, take(*s, pair.rx, 0));
    kept = take(*s, pair.rx, 0);
    const Incoming second = take(*s, pair.rx, 1);
    give_back(*s, second);
    pair.tx.close(), pair.rx.close();
  }
  Census census = sound(*s);
  CHECK_EQ(0U, census.channels + census.returned_blocks);
  CHECK_EQ(1U, census.process_blocks);
  give_back(*s, kept);  // nowhere to go: freed
  census = sound(*s);
  CHECK_EQ(0U, census.process_blocks + census.returned_blocks);
}

TEST(random_kills_lose_nothing_and_double_no_more_than_they_must) {
  const auto s = make_segment();
  Pair pair(*s, leased());
  constexpr std::uint64_t kMessages = 3000;
  struct Board {
    std::atomic<std::uint64_t> done[kMessages];
    std::atomic<std::uint64_t> taken[kMessages];
    std::atomic<std::uint64_t> count;
  };
  auto* board = static_cast<Board*>(
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (std::uint64_t i = 0; i < kMessages; ++i) CHECK_EQ(Status::kOk, send_leased(*s, pair.tx, i));
  const std::uint64_t seed = static_cast<std::uint64_t>(platform::monotonic_ns());
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  check::Random random{seed};
  const auto consumer = [&] {
    return check::in_child([&] {
      check::Random own{static_cast<std::uint64_t>(::getpid())};
      std::vector<Incoming> mine;
      for (;;) {
        Incoming m;
        Wait wait;
        if (pair.rx.receive_slice(m, platform::monotonic_ns() + 20'000'000, wait) == Status::kOk) {
          ++board->taken[number_in(*s, m)];
          mine.push_back(m);
        }
        pair.rx.finish_wait(wait);
        while (mine.size() > own.below(4)) {
          const Incoming last = mine.back();
          mine.pop_back();
          const std::uint64_t number = number_in(*s, last);
          if (own.below(20) == 0) {
            --board->taken[number];
            give_back(*s, last);
            continue;
          }
          end_lease(*s, last.blocks[0].offset);
          ++board->done[number];
          ++board->count;
          CHECK_EQ(Status::kOk, free_block(*s, last.blocks[0].offset));
        }
        if (own.below(50) == 0) ::usleep(200);
      }
    });
  };
  std::vector<pid_t> pids{consumer(), consumer(), consumer()};
  std::uint64_t kills = 0;
  std::uint64_t undone = kMessages;
  const std::int64_t until = platform::monotonic_ns() + 40 * kSecond;
  while (undone != 0 && platform::monotonic_ns() < until) {
    ::usleep(static_cast<useconds_t>(500 + random.below(4000)));
    pid_t& pid = pids[random.below(pids.size())];
    (void)check::kill_and_wait(pid);
    ++kills;
    (void)reap_all(*s);
    pid = consumer();
    // Killed between the end of a lease and its note: at most one message for each kill.
    undone = 0;
    for (const auto& n : board->done) undone += n == 0;
    if (undone <= kills && pair.rx.pending() == 0 && take_census(*s, false).leased_blocks == 0)
      break;
  }
  for (const pid_t pid : pids) (void)check::kill_and_wait(pid);
  (void)reap_all(*s);
  Incoming m;
  while (pair.rx.try_receive(m, platform::kForever) == Status::kOk) {
    ++board->done[number_in(*s, m)];
    finish(*s, m);
  }
  undone = 0;
  std::uint64_t again = 0;
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    undone += board->done[i] == 0 && board->taken[i] == 0;
    again += board->done[i] > 1;
  }
  std::printf("%llu kills\n", static_cast<unsigned long long>(kills));
  CHECK_EQ(0U, undone);  // each came to somebody
  CHECK_EQ(0U, again);   // and none behind the end of its lease
  ThreadHeap::of(*s).trim();
  const Census census = sound(*s);
  CHECK_EQ(0U, census.process_blocks + census.returned_blocks + census.messages);
  CHECK_EQ(1U, census.slabs);
  ::munmap(board, sizeof *board);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
