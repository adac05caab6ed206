// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_diagnosis.cpp - diagnosis.hpp: what is told about channels, and that garbage does no harm.
#include <unistd.h>

#include "fixture.hpp"
#include "ipcbuf/diagnosis.hpp"

namespace {

using namespace fixture;

const auto kMe = static_cast<std::uint32_t>(::getpid());

TEST(a_channel_is_described_with_its_holders_and_what_is_in_it) {
  auto s = make_segment();
  ChannelOptions options;
  options.max_items = 7;
  Pair p(*s, options);
  CHECK_EQ(Status::kOk, send_number(p.tx, 1));
  CHECK_EQ(Status::kOk, send_number(p.tx, 2));

  const auto all = diagnose(*s);

  CHECK_EQ(1U, all.size());
  const ChannelDiagnosis& c = all[0];
  CHECK_EQ(p.id, c.id);
  CHECK(!c.shared);
  CHECK_EQ(2U, c.messages);
  CHECK(c.bytes >= 16);
  CHECK_EQ(7U, c.max_items);
  CHECK_EQ(EndState::kOpen, c.sender.state);
  CHECK_EQ(kMe, c.sender.owner_pid);
  CHECK_EQ(0U, c.receiver.owner_pid);  // nobody has used it yet
  CHECK_EQ(1U, c.receiver.holders.size());
  CHECK_EQ(kMe, c.receiver.holders[0].pid);
  CHECK_EQ(0U, c.receiver.sleeper.pid);
  CHECK_EQ(0U, c.sender.last_pid);
  p.tx.close(), p.rx.close();
}

TEST(who_sleeps_is_named_and_nobody_once_it_is_awake) {
  auto s = make_segment();
  Pair p(*s, shared_ends());
  std::thread waiter([&] {
    std::uint64_t number = 0;
    CHECK_EQ(Status::kOk, receive_number(p.rx, number));
  });
  std::vector<ChannelDiagnosis> all;
  do {
    all = diagnose(*s);
  } while (all[0].receiver.sleeper.pid == 0);
  CHECK_EQ(kMe, all[0].receiver.sleeper.pid);
  CHECK_EQ(0U, all[0].sender.sleeper.pid);
  CHECK_EQ(Status::kOk, send_number(p.tx, 1));
  waiter.join();

  CHECK_EQ(0U, diagnose(*s)[0].receiver.sleeper.pid);
  p.tx.close(), p.rx.close();
}

void use_and_die(bool shared) {
  auto s = make_segment();
  ChannelOptions options;
  options.shared = shared;
  Pair p(*s, options);
  const pid_t child = check::in_child([&] {
    CHECK_EQ(Status::kOk, send_number(p.tx, 1));
    for (;;) ::pause();
  });
  while (p.rx.pending() == 0) ::usleep(1000);
  CHECK_EQ(-SIGKILL, check::kill_and_wait(child));
  if (shared) p.tx.close();  // else the end lives on in us
  CHECK_EQ(1, reap_all(*s));

  const EndDiagnosis end = diagnose(*s)[0].sender;

  CHECK_EQ(static_cast<std::uint32_t>(child), end.last_pid);
  CHECK(end.left_ns > 0 && end.left_ns < 60 * kSecond);
  CHECK_EQ(shared ? EndState::kClosed : EndState::kDead, end.state);
  CHECK_EQ(0U, end.owner_pid);  // its slot is another's by now
  p.tx.close(), p.rx.close();
}

TEST(who_died_at_an_exclusive_end_is_remembered) { use_and_die(false); }
TEST(who_died_at_a_shared_end_is_remembered) { use_and_die(true); }

TEST(who_closed_an_end_is_remembered) {
  auto s = make_segment();
  Pair p(*s, shared_ends());
  p.tx.close();

  CHECK_EQ(kMe, diagnose(*s)[0].sender.last_pid);
  p.rx.close();
}

TEST(garbage_in_every_byte_of_a_row_does_no_harm) {
  auto s = make_segment();
  Pair p(*s, shared_ends());
  ChannelRow& row = s->channel(index_of(p.id));
  std::vector<unsigned char> sound_bytes(sizeof row);
  std::memcpy(sound_bytes.data(), static_cast<void*>(&row), sizeof row);
  const std::uint64_t state = row.state.load();
  check::Random random{20};
  std::size_t seen = 0;
  for (int round = 0; round < 2000; ++round) {
    auto* bytes = reinterpret_cast<unsigned char*>(&row);
    for (std::size_t i = sizeof row.state; i < sizeof row; ++i)
      bytes[i] = static_cast<unsigned char>(random.next() >> (round % 2 == 0 ? 0 : 62));
    row.state = state;

    for (const ChannelDiagnosis& c : diagnose(*s)) {
      ++seen;
      CHECK(c.key.length <= kMaxKey && c.key.kind <= KeyKind::kStr);
      CHECK(c.sender.state <= EndState::kAwaited && c.type <= ChannelType::kAtomic);
      CHECK(c.sender.left_ns >= 0 && c.receiver.sleeper.for_ns >= 0);
    }
  }
  CHECK_EQ(2000U, seen);
  std::memcpy(static_cast<void*>(&row), sound_bytes.data(), sizeof row);
  p.tx.close(), p.rx.close();
  (void)sound(*s);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
