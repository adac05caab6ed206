// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_reaper.cpp - reaper.hpp: what processes leave behind when they are killed at random.
#include "fixture.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/slots.hpp"

#ifdef __SANITIZE_THREAD__
// A reaper looks at records while their ring is in use, and believes what it saw only if the read
// word says afterwards that nobody came past it; formally the look itself is a race. Too new a
// look is harmless: what was consumed meanwhile has been claimed by its receiver before.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  // The second for when it has forgotten who looked; test_channel watches that function.
  return "race:^ipcbuf::reach\nrace:^ipcbuf::SenderEnd::send_entered\n";
}
#endif

namespace {

using namespace fixture;

TEST(nothing_of_a_dead_process_is_left) {
  const auto s = make_segment();
  const pid_t pid = child_that([&] {
    for (std::uint64_t length = 1; length < 500'000; length = length * 3 + 1)
      (void)allocate(*s, length);
    std::uint32_t id = 0;
    Failure why;
    for (int i = 0; i < 5; ++i) CHECK_EQ(Status::kOk, create_channel(*s, {}, id, why));
    std::uint32_t run = 0;
    CHECK_EQ(Status::kOk, RunHeap(*s).allocate(3, run, why));
  });
  CHECK(sound(*s).process_blocks > 10);
  CHECK_EQ(0, reap_all(*s));  // it lives

  (void)check::kill_and_wait(pid);
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(0, reap_all(*s));

  const Census census = sound(*s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(0U, census.slabs + census.channels + census.reserved_runs);
  CHECK_EQ(census.committed_bytes, census.free_bytes + census.returned_bytes);
}

TEST(blocks_in_flight_outlive_their_sender) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const pid_t pid = child_that([&] {
    Failure why;
    for (std::uint64_t i = 0; i < 100; ++i) {
      Outgoing out = message(&i, sizeof i);
      out.block_count = 2;
      for (std::uint32_t b = 0; b < 2; ++b) {
        out.blocks[b] = {allocate(*s, 1000), 1000};
        std::memset(s->payload(out.blocks[b].offset), static_cast<int>((i + b) & 255), 1000);
      }
      CHECK_EQ(Status::kOk, pair.tx.try_send(out, platform::kForever, why));
      (void)allocate(*s, 100);  // and something that dies with it
    }
  });
  (void)check::kill_and_wait(pid);
  CHECK_EQ(1, reap_all(*s));
  Census census = sound(*s);
  CHECK_EQ(200U, census.flight_blocks);
  CHECK_EQ(0U, census.process_blocks);

  Incoming in;
  for (std::uint64_t i = 0; i < 100; ++i) {
    CHECK_EQ(Status::kOk, pair.rx.try_receive(in, platform::kForever));
    for (std::uint32_t b = 0; b < 2; ++b) {
      CHECK_EQ(static_cast<unsigned>((i + b) & 255),
               static_cast<unsigned>(*s->payload(in.blocks[b].offset)));
      CHECK_EQ(Status::kOk, free_block(*s, in.blocks[b].offset));
    }
  }
  census = sound(*s);
  CHECK_EQ(1U, census.slabs);  // the ring; the dead's slabs went with their last blocks
}

TEST(a_child_of_a_fork_in_the_making_of_a_channel_leaves_no_hold) {
  // One thread makes a channel, another forks, the child dies before the channel is whole.
  const auto s = make_segment();
  std::uint32_t id = 0;
  Failure why;
  CHECK_EQ(Status::kOk, create_channel(*s, {}, id, why));
  ChannelRow& row = s->channel(index_of(id));
  const std::uint64_t active = row.state;
  row.state =
      ChannelWord{ChannelState::kClaimed, ChannelWord::unpack(active).generation, s->token()}
          .pack();
  const pid_t pid = child_that([] {});
  CHECK_EQ(2U, Hold::unpack(row.sender_holds.cells[0]).count +
                   Hold::unpack(row.sender_holds.cells[1]).count);
  (void)check::kill_and_wait(pid);
  CHECK_EQ(1, reap_all(*s));
  row.state = active;

  SenderEnd tx(*s, id);
  ReceiverEnd rx(*s, id);
  tx.close();
  rx.close();
  CHECK_EQ(0U, sound(*s).channels);
}

TEST(threads_may_bury_the_same_process) {
  const auto s = make_segment();
  for (int round = 0; round < 20; ++round) {
    const pid_t pid = child_that([&] {
      (void)allocate(*s, 100), (void)allocate(*s, 100'000);
      std::uint32_t id = 0;
      Failure why;
      CHECK_EQ(Status::kOk, create_channel(*s, {}, id, why));
    });
    (void)check::kill_and_wait(pid);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { (void)reap_all(*s); });
    for (auto& thread : threads) thread.join();
    const Census census = sound(*s);
    CHECK_EQ(1U, census.processes);
    CHECK_EQ(0U, census.slabs + census.channels);
  }
}

TEST(a_reaper_at_work_disturbs_nobody) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  std::atomic<bool> stop{false};
  std::atomic<bool> all_sent{false};
  std::atomic<std::uint64_t> sent{0};
  std::thread sender([&] {
    Failure why;
    for (std::uint64_t i = 0; !stop; ++i) {
      Outgoing out = message(&i, sizeof i);
      out.block_count = 1;
      out.blocks[0] = {allocate(*s, 200), 200};
      std::memset(s->payload(out.blocks[0].offset), static_cast<int>(i & 255), 200);
      CHECK_EQ(Status::kOk, pair.tx.try_send(out, platform::kForever, why));
      sent = i + 1;
      while (!stop && pair.tx.pending() > 3000) std::this_thread::yield();
    }
  });
  std::uint64_t got = 0;
  std::uint64_t wrong = 0;
  std::thread receiver([&] {
    Incoming in;
    while (!all_sent || got < sent) {
      if (pair.rx.try_receive(in, platform::kForever) != Status::kOk) continue;
      std::uint64_t number = 0;
      std::memcpy(&number, in.payload, sizeof number);
      if (number != got++) ++wrong;
      if (*s->payload(in.blocks[0].offset) != static_cast<std::byte>(number & 255)) ++wrong;
      if (free_block(*s, in.blocks[0].offset) != Status::kOk) ++wrong;
    }
  });
  // Tokens that never were a process: a claimed seat whose byte is let go is as dead as one.
  for (int round = 0; round < (check::kSanitized ? 50 : 500) || sent < 10'000; ++round) {
    const int fd = platform::reopen(s->fd());
    Token token = 0;
    CHECK_EQ(Status::kOk, claim_slot(*s, fd, true, token));
    // It has a block, so that the reaper has to look into the rings while they are in use.
    BlockPlace p{};
    CHECK(s->place(allocate(*s, 400), p));
    s->page(p.head).slot_set.fetch_or(slot_bit(token));
    store_holder(*s, p, by_process(token));
    platform::close_fd(fd);
    CHECK(reap_all(*s) >= 1);
    Holder holder{};
    CHECK(read_holder(*s, p, holder) && holder == kNobody);
  }
  stop = true;
  sender.join();
  all_sent = true;
  receiver.join();

  CHECK_EQ(0U, wrong);
  CHECK_EQ(sent.load(), got);
  CHECK(!s->is_poisoned());
  ThreadHeap::of(*s).trim();
  CHECK_EQ(1U, sound(*s).slabs);
}

TEST(random_kills_leave_nothing_behind) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  check::Random random{2026};
  const int kills = check::kSanitized ? 30 : 200;
  for (int round = 0; round < kills; ++round) {
    const pid_t pid = check::in_child([&] {
      check::Random own{static_cast<std::uint64_t>(round)};
      Failure why;
      Incoming in;
      std::vector<std::uint64_t> mine;
      for (std::uint64_t i = 0;; ++i) {
        switch (own.below(5)) {
          case 0:
          case 1: {
            Outgoing out = message(&i, sizeof i);
            out.block_count = static_cast<std::uint32_t>(own.below(3));
            for (std::uint32_t b = 0; b < out.block_count; ++b)
              out.blocks[b] = {allocate(*s, 300), 300};
            (void)pair.tx.try_send(out, platform::kForever, why);
            break;
          }
          case 2:
            if (pair.rx.try_receive(in, platform::kForever) == Status::kOk)
              for (std::uint32_t b = 0; b < in.block_count; ++b)
                (void)free_block(*s, in.blocks[b].offset);
            break;
          case 3:
            if (mine.size() < 50) mine.push_back(allocate(*s, 1 + own.below(60'000)));
            break;
          default:
            if (!mine.empty()) {
              (void)free_block(*s, mine.back());
              mine.pop_back();
            }
        }
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(500 + random.below(3000)));
    (void)check::kill_and_wait(pid);
    CHECK_EQ(1, reap_all(*s));
    // Look at everything, then take what is there: it must be whole.
    Incoming in;
    Status status;
    while ((status = pair.rx.try_receive(in, platform::kForever)) == Status::kOk)
      for (std::uint32_t b = 0; b < in.block_count; ++b)
        CHECK_EQ(Status::kOk, free_block(*s, in.blocks[b].offset));
    CHECK_EQ(Status::kEmpty, status);
    ThreadHeap::of(*s).trim();
    const Census census = sound(*s);
    CHECK_EQ(1U, census.slabs);
    CHECK_EQ(0U, census.process_blocks + census.flight_blocks + census.messages);
    if (check::failures != 0) return;
  }
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
