// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_parcels.cpp - parcels.hpp: handles for a process that dies before it has them.
#include "fixture.hpp"
#include "ipcbuf/parcels.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/slots.hpp"

namespace {

using namespace fixture;

Token reserved(Segment& s) {
  Token parcels = 0;
  CHECK_EQ(Status::kOk, reserve_parcels(s, parcels));
  return parcels;
}

/// The sending end of `pair` is on its way among `parcels`, and nowhere else.
void send_away(Pair& pair, Token parcels) {
  CHECK_EQ(Status::kOk, hold_in_transit(pair.s, pair.id, End::kSender, parcels));
  pair.tx.close();
  std::uint64_t number = 0;
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));
}

/// A process that lives, and has `parcels` on their way to it.
pid_t addressee_of(Segment& s, Token parcels) {
  const pid_t pid = child_that([] {});
  address_parcels(s, parcels, static_cast<std::uint32_t>(pid));
  return pid;
}

TEST(a_parcel_goes_with_the_process_that_was_to_have_it) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const Token parcels = reserved(*s);
  send_away(pair, parcels);
  const pid_t pid = addressee_of(*s, parcels);
  std::uint64_t number = 0;
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));
  (void)reap_all(*s);
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));

  CHECK_EQ(0, ::kill(pid, SIGKILL));  // it is not even waited for
  CHECK_EQ(Status::kEnded, receive_number(pair.rx, number));

  (void)check::end_of(pid);
  (void)reap_all(*s);
  CHECK_EQ(1U, sound(*s).processes);
  CHECK_EQ(0U, sound(*s).parcels);
}

TEST(one_that_has_been_unpacked_stays) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const Token parcels = reserved(*s);
  send_away(pair, parcels);
  const pid_t pid = addressee_of(*s, parcels);
  CHECK_EQ(Status::kOk, open_channel(*s, pair.id, End::kSender, parcels));
  SenderEnd here(*s, pair.id);

  (void)check::kill_and_wait(pid);
  (void)reap_all(*s);

  std::uint64_t number = 0;
  CHECK_EQ(Status::kOk, send_number(here, 3));
  CHECK_EQ(Status::kOk, receive_number(pair.rx, number));
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));
  here.close();
}

TEST(what_could_not_be_delivered_is_dropped) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const Token parcels = reserved(*s);
  send_away(pair, parcels);

  drop_parcels(*s, parcels);

  std::uint64_t number = 0;
  CHECK_EQ(Status::kEnded, receive_number(pair.rx, number));
  CHECK_EQ(1U, sound(*s).processes);
  CHECK_EQ(0U, sound(*s).parcels);
}

TEST(until_they_are_addressed_they_go_with_their_sender) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const pid_t pid = child_that(
      [&] { CHECK_EQ(Status::kOk, hold_in_transit(*s, pair.id, End::kSender, reserved(*s))); });
  pair.tx.close();
  std::uint64_t number = 0;
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));

  (void)check::kill_and_wait(pid);
  const Status end = receive_number(pair.rx, number);
  CHECK(end == Status::kEnded || end == Status::kBroken);

  (void)reap_all(*s);
  CHECK_EQ(1U, sound(*s).processes);
  CHECK_EQ(0U, sound(*s).parcels);
}

TEST(an_address_that_comes_too_late_says_nothing_about_others) {  // V1
  const auto s = make_segment();
  const Token old = reserved(*s);
  drop_parcels(*s, old);
  Pair pair(*s, shared_ends());
  const Token parcels = reserved(*s);
  CHECK_EQ(slot_of(old), slot_of(parcels));
  send_away(pair, parcels);
  const pid_t pid = child_that([] {});
  (void)check::kill_and_wait(pid);

  address_parcels(*s, old, static_cast<std::uint32_t>(pid));
  (void)reap_all(*s);

  std::uint64_t number = 0;
  CHECK_EQ(Status::kEmpty, receive_number(pair.rx, number, 0));
  CHECK_EQ(1U, sound(*s).parcels);
  CHECK_EQ(1UL, list_seats(*s).size());

  address_parcels(*s, parcels, static_cast<std::uint32_t>(pid));  // nor in the way of the right one
  CHECK_EQ(Status::kEnded, receive_number(pair.rx, number));
  (void)reap_all(*s);
  CHECK_EQ(0U, sound(*s).parcels);
}

TEST(they_are_no_process_to_who_lists_them) {
  const auto s = make_segment();
  const Token parcels = reserved(*s);
  CHECK_EQ(1UL, list_seats(*s).size());
  CHECK_EQ(1U, sound(*s).processes);
  CHECK_EQ(1U, sound(*s).parcels);
  drop_parcels(*s, parcels);

  const pid_t pid = child_that([&] { CHECK_EQ(slot_of(parcels), slot_of(s->token())); });  // V1
  CHECK_EQ(2UL, list_seats(*s).size());
  CHECK_EQ(2U, sound(*s).processes);
  (void)check::kill_and_wait(pid);
  CHECK_EQ(1, reap_all(*s));
}

TEST(a_ward_is_what_it_was) {
  const Ward ward = Ward::unpack(Ward{kGenerationMask, Ward::kMask, 4'194'303}.pack());
  CHECK_EQ(kGenerationMask, ward.generation);
  CHECK_EQ(Ward::kMask, ward.started);
  CHECK_EQ(4'194'303U, ward.pid);
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
