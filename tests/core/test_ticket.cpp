// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_ticket.cpp - ticket.hpp: what a ticket keeps alive, on its way, in bytes, behind the dead.
#include "fixture.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/ticket.hpp"

namespace {

using namespace fixture;

std::uint64_t ticket_for(Segment& s, std::uint64_t held) {
  Failure why;
  std::uint64_t ticket = 0;
  CHECK_EQ(Status::kOk, make_ticket(s, held, ticket, why));
  return ticket;
}
TicketText text_of(Segment& s, std::uint64_t ticket) {
  return *reinterpret_cast<TicketText*>(s.payload(ticket));
}
Outgoing message_with(std::uint64_t ticket, std::uint64_t length) {
  Outgoing m;
  m.payload_in_block = true;
  m.block_count = 1;
  m.blocks[0] = {ticket, length};
  return m;
}

TEST(a_block_lives_until_its_last_ticket) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 5000);
  const std::uint64_t first = ticket_for(*s, block);
  const std::uint64_t second = ticket_for(*s, first);
  CHECK_EQ(1U, sound(*s).shared_blocks);
  CHECK_EQ(2U, sound(*s).tickets);

  CHECK_EQ(Status::kOk, drop_block(*s, block));
  CHECK_EQ(Status::kOk, free_block(*s, first));
  std::uint64_t at = 0;
  std::uint64_t length = 0;
  CHECK_EQ(Status::kOk, read_ticket(*s, second, at, length));
  CHECK_EQ(block, at);
  CHECK_EQ(5000U, length);

  CHECK_EQ(Status::kOk, free_block(*s, second));
  const Census census = sound(*s);
  CHECK_EQ(0U, census.shared_blocks + census.entries + census.tickets + census.process_blocks);
}

TEST(more_tickets_than_cells) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 100);
  std::vector<std::uint64_t> tickets(100);
  for (auto& ticket : tickets) ticket = ticket_for(*s, block);
  CHECK_EQ(Status::kOk, drop_block(*s, block));
  (void)sound(*s);
  check::Random random{5};
  while (!tickets.empty()) {
    CHECK_EQ(1U, take_census(*s, true).shared_blocks);
    const std::size_t i = random.below(tickets.size());
    CHECK_EQ(Status::kOk, free_block(*s, tickets[i]));
    tickets.erase(tickets.begin() + static_cast<long>(i));
  }
  const Census census = sound(*s);

  CHECK_EQ(0U, census.entries + census.process_blocks + census.shared_blocks);
}

TEST(a_message_carries_a_ticket) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 1'000'000);
  Failure why;
  {
    Pair pair(*s, shared_ends());
    CHECK_EQ(Status::kOk, pair.tx.try_send(message_with(ticket_for(*s, block), 1'000'000), 0, why));
    CHECK_EQ(Status::kOk, drop_block(*s, block));
    CHECK_EQ(1U, sound(*s).flight_blocks);
    Incoming m;
    CHECK_EQ(Status::kOk, pair.rx.try_receive(m, 0));
    CHECK_EQ(1'000'000U, m.blocks[0].length);
    CHECK(is_ticket(*s, m.blocks[0].offset));
    // Once more, and it goes with the channel.
    CHECK_EQ(Status::kOk, pair.tx.try_send(message_with(m.blocks[0].offset, 1'000'000), 0, why));
    pair.tx.close();
    pair.rx.close();
  }
  const Census census = sound(*s);

  CHECK_EQ(0U, census.entries + census.process_blocks + census.shared_blocks);
}

TEST(a_dead_process_gives_its_tickets_up) {
  const auto s = make_segment();
  Pair pair(*s, shared_ends());
  const pid_t pid = check::in_child([&] {
    const std::uint64_t block = allocate(*s, 300'000);
    (void)ticket_for(*s, block);
    Failure why;
    CHECK_EQ(Status::kOk, pair.tx.try_send(message_with(ticket_for(*s, block), 300'000), 0, why));
    (void)::kill(::getpid(), SIGKILL);
  });
  (void)check::end_of(pid);
  CHECK_EQ(1, reap_all(*s));
  CHECK_EQ(1U, sound(*s).shared_blocks);
  CHECK_EQ(1U, sound(*s).tickets);

  Incoming m;
  CHECK_EQ(Status::kOk, pair.rx.try_receive(m, 0));
  CHECK_EQ(Status::kOk, free_block(*s, m.blocks[0].offset));

  const Census census = sound(*s);
  CHECK_EQ(0U, census.entries + census.process_blocks + census.shared_blocks);
}

TEST(the_text_of_a_ticket_opens_it_once) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 100);
  const std::uint64_t ticket = ticket_for(*s, block);
  const TicketText text = text_of(*s, ticket);
  CHECK_EQ(Status::kNotFound, adopt_ticket(*s, text));  // not offered
  offer_ticket(*s, ticket);
  TicketText other = text;
  ++other.number;
  CHECK_EQ(Status::kNotFound, adopt_ticket(*s, other));
  other = text;
  other.offset += kCacheLine;
  CHECK_EQ(Status::kNotFound, adopt_ticket(*s, other));
  other.offset = ~0ULL;
  CHECK_EQ(Status::kNotFound, adopt_ticket(*s, other));

  const pid_t pid = check::in_child([&] {
    CHECK_EQ(Status::kOk, adopt_ticket(*s, text));
    CHECK_EQ(Status::kNotFound, adopt_ticket(*s, text));
    CHECK_EQ(Status::kOk, free_block(*s, ticket));
  });
  CHECK_EQ(0, check::end_of(pid));

  CHECK_EQ(Status::kNotFound, adopt_ticket(*s, text));
  (void)reap_all(*s);
  CHECK_EQ(0U, sound(*s).tickets);
  CHECK_EQ(Status::kOk, drop_block(*s, block));
  CHECK_EQ(0U, sound(*s).entries);
}

TEST(a_ticket_survives_a_fork_as_a_view) {
  const auto s = make_segment();
  const std::uint64_t block = allocate(*s, 100);
  const std::uint64_t ticket = ticket_for(*s, block);
  CHECK_EQ(Status::kOk, drop_block(*s, block));
  LiveView view;
  view.block = ticket;
  s->add_view(view);
  const pid_t pid = check::in_child([&] {
    std::uint64_t at = 0;
    std::uint64_t length = 0;
    CHECK_EQ(Status::kOk, read_ticket(*s, ticket, at, length));
    CHECK_EQ(block, at);
    CHECK_EQ(Status::kOk, drop_block(*s, ticket));
  });
  CHECK_EQ(0, check::end_of(pid));
  (void)reap_all(*s);
  CHECK_EQ(2U, sound(*s).shared_blocks);

  s->remove_view(view);
  CHECK_EQ(Status::kOk, drop_block(*s, ticket));

  CHECK_EQ(0U, sound(*s).entries);
  CHECK_EQ(0U, sound(*s).shared_blocks);
}

TEST(a_ticket_of_nothing_poisons) {
  const auto s = make_segment();
  const std::uint64_t ticket = ticket_for(*s, allocate(*s, 100));
  s->block(ticket).ticket.store(1ULL << 32 | 0xFFFFF);
  std::uint64_t at = 0;
  std::uint64_t length = 0;

  CHECK_EQ(Status::kCorrupted, read_ticket(*s, ticket, at, length));
  CHECK(s->is_poisoned());
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
