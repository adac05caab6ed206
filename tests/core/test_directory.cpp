// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_directory.cpp - channels by key: made, joined, left, removed, by the living and the dead.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "fixture.hpp"
#include "ipcbuf/atomic_cell.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/static_area.hpp"

namespace {

using namespace fixture;

JoinRequest request(std::int64_t key, End end = End::kSender) {
  JoinRequest r;
  r.key = key_of(key);
  r.end = end;
  return r;
}

Status join(Segment& s, const JoinRequest& r, std::uint32_t& id, Failure& why) {
  Status status = Status::kSlice;
  while (status == Status::kSlice) status = join_channel_slice(s, r, id, why);
  return status;
}
/// Joins; the test fails if it is refused.
std::uint32_t joined(Segment& s, const JoinRequest& r) {
  std::uint32_t id = 0;
  Failure why;
  CHECK_EQ(Status::kOk, join(s, r, id, why));
  return id;
}
Status find(Segment& s, std::int64_t key) {
  std::uint32_t id = 0;
  Status status = Status::kSlice;
  while (status == Status::kSlice) status = find_channel_slice(s, key_of(key), id);
  return status;
}
Status remove(Segment& s, std::int64_t key) {
  Status status = Status::kSlice;
  while (status == Status::kSlice) status = remove_channel_slice(s, key_of(key));
  return status;
}

TEST(who_comes_first_makes_it_and_the_other_end_waits) {
  auto s = make_segment();
  ReceiverEnd rx(*s, joined(*s, request(7, End::kReceiver)));
  CHECK_EQ(Status::kOk, find(*s, 7));
  CHECK_EQ(Status::kNotFound, find(*s, 8));
  Incoming m;
  Wait wait;
  CHECK_EQ(Status::kEmpty, rx.receive_slice(m, 0, wait));  // no end of the channel: nobody came
  {
    SenderEnd tx(*s, joined(*s, request(7)));
    CHECK_EQ(rx.id(), tx.id());
    CHECK_EQ(Status::kOk, send_number(tx, 1));
    tx.close();
  }
  std::uint64_t n = 0;
  CHECK_EQ(Status::kOk, receive_number(rx, n));
  CHECK_EQ(Status::kEnded, receive_number(rx, n));
  SenderEnd again(*s, joined(*s, request(7)));
  CHECK_EQ(Status::kOk, send_number(again, 2));
  CHECK_EQ(Status::kOk, receive_number(rx, n));
  CHECK_EQ(std::uint64_t{2}, n);
  again.close(), rx.close();
  CHECK_EQ(Status::kNotFound, find(*s, 7));
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

TEST(messages_stay_for_the_next_receiver_and_go_with_the_last_user) {
  auto s = make_segment();
  SenderEnd tx(*s, joined(*s, request(1)));
  for (std::uint64_t i = 0; i < 5; ++i) CHECK_EQ(Status::kOk, send_number(tx, i));
  std::uint64_t n = 0;
  {
    ReceiverEnd rx(*s, joined(*s, request(1, End::kReceiver)));
    CHECK_EQ(Status::kOk, receive_number(rx, n));
    rx.close();
  }
  CHECK_EQ(Status::kBroken, send_number(tx, 9));
  ReceiverEnd rx(*s, joined(*s, request(1, End::kReceiver)));
  CHECK_EQ(Status::kOk, send_number(tx, 5));
  for (std::uint64_t i = 1; i < 6; ++i) {
    CHECK_EQ(Status::kOk, receive_number(rx, n));
    CHECK_EQ(i, n);
  }
  CHECK_EQ(Status::kOk, send_number(tx, 6));
  tx.close(), rx.close();
  const Census census = sound(*s);
  CHECK_EQ(std::uint64_t{0}, census.channels + census.messages + census.ring_blocks);
}

TEST(what_differs_is_refused_with_both_values) {
  auto s = make_segment();
  SenderEnd tx(*s, joined(*s, request(1)));
  JoinRequest r = request(1, End::kReceiver);
  std::uint32_t id = 0;
  Failure why;
  r.max_items = 3;  // nobody has given any yet
  ReceiverEnd rx(*s, joined(*s, r));
  CHECK_EQ(std::uint64_t{3}, tx.max_items());
  rx.close();
  r.max_items = 4;
  CHECK_EQ(Status::kMismatch, join(*s, r, id, why));
  CHECK_EQ(std::uint64_t{4}, why.requested);
  CHECK_EQ(std::uint64_t{3}, why.committed);
  r = request(1, End::kReceiver);
  r.shared = true;
  CHECK_EQ(Status::kMismatch, join(*s, r, id, why));
  r = request(1);
  r.type = ChannelType::kAtomic;
  CHECK_EQ(Status::kMismatch, join(*s, r, id, why));
  CHECK_EQ(Status::kBusyEnd, join(*s, request(1), id, why));
  CHECK_EQ(std::uint64_t{platform::process_id()}, why.requested);
  tx.close();
  (void)sound(*s);
}

TEST(thousands_of_keys_come_and_go) {
  auto s = make_segment(256U << 20);
  check::Random random{20};
  std::vector<std::uint32_t> ids(3000);
  for (std::uint32_t i = 0; i < ids.size(); ++i) ids[i] = joined(*s, request(i));
  (void)sound(*s);
  for (int round = 0; round < 2000; ++round) {
    const auto i = random.below(ids.size());
    s->remove_endpoint(ids[i], End::kSender);
    CHECK_EQ(Status::kNotFound, find(*s, static_cast<std::int64_t>(i)));
    ids[i] = joined(*s, request(static_cast<std::int64_t>(i)));
  }
  for (std::uint32_t i = 0; i < ids.size(); ++i) CHECK_EQ(Status::kOk, find(*s, i));
  CHECK_EQ(std::uint64_t{ids.size()}, sound(*s).channels);
  CHECK(s->header().channels_high.load() <= ids.size() * 5 / 4);  // rows are used again
  for (const std::uint32_t id : ids) s->remove_endpoint(id, End::kSender);
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

TEST(a_table_that_contradicts_the_rows_is_made_anew) {
  auto s = make_segment();
  std::vector<std::uint32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(joined(*s, request(i)));
  const std::uint32_t bits = s->header().directory_bits.load();
  for (std::uint32_t at = 0; at < 1U << bits; ++at) s->key_table()[at].store(0x00FFFFFF);
  for (int i = 0; i < 40; ++i) CHECK_EQ(Status::kOk, find(*s, i));
  (void)sound(*s);
  for (const std::uint32_t id : ids) s->remove_endpoint(id, End::kSender);
}

TEST(the_dead_make_the_end_dead_and_a_new_one_alive) {
  auto s = make_segment();
  ReceiverEnd rx(*s, joined(*s, request(1, End::kReceiver)));
  for (std::uint64_t round = 0; round < 3; ++round) {
    const pid_t pid = check::in_child([&] {
      SenderEnd tx(*s, joined(*s, request(1)));
      CHECK_EQ(Status::kOk, send_number(tx, round));
      ::kill(::getpid(), SIGKILL);
    });
    CHECK_EQ(-SIGKILL, check::end_of(pid));
    std::uint64_t n = 99;
    CHECK_EQ(Status::kOk, receive_number(rx, n));
    CHECK_EQ(round, n);
    CHECK_EQ(Status::kBroken, receive_number(rx, n));
    CHECK_EQ(std::uint64_t{0}, count_users(*s, rx.id(), End::kSender));
  }
  rx.close();
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

TEST(a_channel_of_the_dead_is_not_joined) {
  auto s = make_segment();
  const pid_t pid = check::in_child([&] {
    SenderEnd tx(*s, joined(*s, request(1)));
    CHECK_EQ(Status::kOk, send_number(tx, 1));
    ::kill(::getpid(), SIGKILL);
  });
  CHECK_EQ(-SIGKILL, check::end_of(pid));
  JoinRequest r = request(1, End::kReceiver);
  r.shared = true;
  ReceiverEnd rx(*s, joined(*s, r));
  std::uint64_t n = 0;
  CHECK_EQ(Status::kEmpty, receive_number(rx, n, 0));
  rx.close();
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

TEST(removal_frees_the_key_and_ends_the_channel) {
  auto s = make_segment();
  SenderEnd tx(*s, joined(*s, request(1)));
  ReceiverEnd rx(*s, joined(*s, request(1, End::kReceiver)));
  CHECK_EQ(Status::kOk, send_number(tx, 1));
  CHECK_EQ(Status::kOk, remove(*s, 1));
  CHECK_EQ(Status::kNotFound, remove(*s, 1));
  SenderEnd other(*s, joined(*s, request(1)));
  CHECK(other.id() != tx.id());
  std::uint64_t n = 0;
  CHECK_EQ(Status::kBroken, send_number(tx, 2));
  CHECK_EQ(Status::kOk, receive_number(rx, n));
  CHECK_EQ(Status::kEnded, receive_number(rx, n));
  CHECK_EQ(std::uint64_t{2}, sound(*s).channels);
  tx.close(), rx.close();
  CHECK_EQ(std::uint64_t{1}, sound(*s).channels);
  CHECK_EQ(Status::kOk, find(*s, 1));
  other.close();
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

/// Processes that make, join, leave and remove the same few keys until they are killed.
TEST(killed_at_random_moments_nothing_is_left) {
  auto s = make_segment();
  const std::uint64_t seed = static_cast<std::uint64_t>(platform::monotonic_ns());
  std::printf("seed %lu\n", seed);
  check::Random random{seed};
  for (int round = 0; round < 40; ++round) {
    std::vector<pid_t> pids;
    for (int p = 0; p < 3; ++p) {
      const std::uint64_t own = random.next();
      pids.push_back(check::in_child([&, own] {
        check::Random mine{own};
        for (;;) {
          JoinRequest r = request(static_cast<std::int64_t>(mine.below(3)),
                                  mine.below(2) == 0 ? End::kSender : End::kReceiver);
          if (r.key.text[0] == 2) {
            r.type = ChannelType::kStatic;
            r.end = End::kSender;
            r.length = 5000;
          } else {
            r.shared = r.key.text[0] == 1;
          }
          std::uint32_t id = 0;
          Failure why;
          const Status status = join(*s, r, id, why);
          if (status == Status::kOk) {
            if (mine.below(4) == 0) (void)remove(*s, static_cast<std::int64_t>(mine.below(3)));
            s->remove_endpoint(id, r.end);
          } else {
            CHECK_EQ(Status::kBusyEnd, status);
          }
        }
      }));
    }
    const timespec pause{0, static_cast<long>(random.below(8'000'000))};
    ::nanosleep(&pause, nullptr);
    for (const pid_t pid : pids) CHECK_EQ(-SIGKILL, check::kill_and_wait(pid));
    (void)reap_all(*s);
    const Census census = sound(*s);
    CHECK_EQ(std::uint64_t{0}, census.channels + census.ring_blocks + census.process_blocks);
  }
}

TEST(init_runs_once_and_again_after_a_death) {
  auto s = make_segment();
  JoinRequest r = request(1);
  r.type = ChannelType::kStatic;
  r.length = 3'000;
  const std::uint32_t id = joined(*s, r);
  std::byte* bytes = s->payload(area_block(*s, s->channel(index_of(id))));
  const auto turn = [&] {
    Status status = Status::kSlice;
    while (status == Status::kSlice) status = begin_init_slice(*s, id, true);
    return status;
  };
  const pid_t pid = check::in_child([&] {
    CHECK_EQ(Status::kEmpty, turn());
    std::memset(bytes, 1, 3'000);
    ::kill(::getpid(), SIGKILL);
  });
  CHECK_EQ(-SIGKILL, check::end_of(pid));
  CHECK_EQ(Status::kEmpty, turn());
  CHECK(std::all_of(bytes, bytes + 3'000, [](std::byte b) { return b == std::byte{0}; }));
  bytes[0] = std::byte{7};
  end_init(*s, id, false);  // it raised
  CHECK_EQ(Status::kOk, begin_init_slice(*s, id, false));
  CHECK(bytes[0] == std::byte{0});
  CHECK_EQ(Status::kEmpty, turn());
  bytes[0] = std::byte{8};
  end_init(*s, id, true);
  CHECK_EQ(Status::kOk, turn());
  CHECK(bytes[0] == std::byte{8});
  (void)reap_all(*s);
  s->remove_endpoint(id, End::kSender);
  CHECK_EQ(std::uint64_t{0}, sound(*s).ring_blocks);
}

TEST(an_atomic_cell_loses_no_count_and_wakes_who_waits) {
  auto s = make_segment();
  JoinRequest r = request(1);
  r.type = ChannelType::kAtomic;
  r.value = 5;
  AtomicCell cell(*s, joined(*s, r));
  std::vector<pid_t> pids;
  for (int p = 0; p < 3; ++p)
    pids.push_back(check::in_child([&] {
      for (int i = 0; i < 1000; ++i) (void)cell.add(1);
      cell.notify(-1);
    }));
  std::uint64_t seen = 5;
  while (seen != 3005) {
    Wait wait;
    (void)cell.wait_slice(seen, platform::monotonic_ns() + 20 * kSecond, wait);
    seen = cell.load();
  }
  for (const pid_t pid : pids) CHECK_EQ(0, check::end_of(pid));
  cell.close();
  (void)reap_all(*s);
  CHECK_EQ(std::uint64_t{0}, sound(*s).channels);
}

}  // namespace

int main(int count, char** arguments) { return check::run(count, arguments); }
