// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_slots.cpp - slots.hpp: seats are claimed once, used up, and come back with a new name.
#include <set>

#include "fixture.hpp"
#include "ipcbuf/slots.hpp"

namespace {

using namespace fixture;

TEST(a_seat_that_comes_back_has_another_token) {
  const auto s = make_segment();
  std::set<Token> tokens;
  for (int i = 0; i < 20; ++i) {
    const int fd = platform::reopen(s->fd());
    Token token = 0;
    CHECK_EQ(Status::kOk, claim_slot(*s, fd, true, token));
    CHECK(tokens.insert(token).second);
    CHECK(!s->is_dead(token));
    platform::close_fd(fd);  // half-made and its maker gone
    CHECK(s->is_dead(token));
    CHECK_EQ(1, reap_all(*s));
  }
  CHECK_EQ(1U, slot_of(*tokens.begin()));
  CHECK_EQ(1U, slot_of(*tokens.rbegin()));
}

TEST(when_all_seats_are_taken_the_next_is_refused_until_some_die) {
  const auto s = make_segment();
  const int fd = platform::reopen(s->fd());
  std::set<Token> tokens;
  Token token = 0;
  Status status;
  while ((status = claim_slot(*s, fd, true, token)) == Status::kOk)
    CHECK(tokens.insert(token).second);
  CHECK_EQ(Status::kTooMany, status);
  CHECK_EQ(std::size_t{kMaxSlots} - 1, tokens.size());

  platform::close_fd(fd);
  const int other = platform::reopen(s->fd());
  CHECK_EQ(Status::kOk, claim_slot(*s, other, true, token));  // buries them all, then sits down
  CHECK_EQ(2U, sound(*s).processes);
  platform::close_fd(other);
  CHECK_EQ(1, reap_all(*s));
}

TEST(threads_never_claim_the_same_seat) {
  const auto s = make_segment();
  std::vector<std::vector<Token>> got(4);
  std::vector<int> fds(4);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < got.size(); ++t)
    threads.emplace_back([&, t] {
      fds[t] = platform::reopen(s->fd());
      for (int i = 0; i < 100; ++i) {
        Token token = 0;
        CHECK_EQ(Status::kOk, claim_slot(*s, fds[t], true, token));
        got[t].push_back(token);
      }
    });
  for (auto& thread : threads) thread.join();
  std::set<Token> all;
  for (const auto& part : got) all.insert(part.begin(), part.end());

  CHECK_EQ(400U, all.size());
  for (const int fd : fds) platform::close_fd(fd);
  CHECK_EQ(400, reap_all(*s));
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
