// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ctest-plain-only
// ctest-machine: x86_64
// ctest-timeout: 300
//
// test_interleaving.cpp - two processes, one of them stopped at every instruction in turn.
//
// One process is stepped with ptrace to its n-th instruction and stops there; the other does the
// whole of its work; the first goes on to its end. For every n (or, where there are thousands,
// for some hundred of them). So a rule about the order of two loads is tested by schedule, not by
// luck: random runs almost never hit the window.
//
// Where the first process holds a lock that the second needs, the point is skipped: the second
// would wait for it, as it should.
#include <linux/futex.h>
#include <sys/syscall.h>

#include <initializer_list>
#include <thread>

#include "check.hpp"
#include "ipcbuf/lease.hpp"
#include "stepper.hpp"

namespace {

using namespace stepper;

/// Where the first process stops: about this many points if it takes more instructions.
constexpr std::uint64_t kPoints = 150;
constexpr std::uint64_t kPointsOfMany = 50;  // if it takes thousands

struct Duel {
  std::string name;
  std::function<void(World&)> set_up = [](World&) {};
  std::function<void(World&)> first_prepare = [](World&) {};
  std::function<void(World&)> first{};
  std::function<void(World&)> after_fork = [](World&) {};
  std::function<void(World&)> second{};              // by the tracer
  std::function<void(World&)> then = [](World&) {};  // by the tracer, when both are done
  bool second_sends = false;
  bool second_receives = false;
  std::uint64_t each_until = 0;  // stop at each of so many instructions, and nowhere else
  bool must_not_sleep = false;   // the first may not go to sleep once the second is done
};

void must(bool condition, int line, const Duel& duel, std::uint64_t at, const std::string& what) {
  if (condition) return;
  check::fail(__FILE__, line,
              duel.name + ", stopped behind instruction " + std::to_string(at) + ": " + what);
}

/// True if the process, stopped at a system call, is about to wait on a word that has not changed.
bool would_sleep(World& w, pid_t pid, const user_regs_struct& regs) {
  if (regs.rax != SYS_futex || (regs.rsi & FUTEX_CMD_MASK) != FUTEX_WAIT_BITSET) return false;
  const long text = ::ptrace(PTRACE_PEEKTEXT, pid, regs.rip, nullptr);
  if ((text & 0xFFFF) != 0x050F) return false;  // syscall
  const auto* base = reinterpret_cast<const std::byte*>(&w.s->header());
  const auto* word = reinterpret_cast<const std::uint32_t*>(regs.rdi);
  const auto* at = reinterpret_cast<const std::byte*>(word);
  if (at < base || at >= base + w.s->constants().window) return false;
  return __atomic_load_n(word, __ATOMIC_ACQUIRE) == static_cast<std::uint32_t>(regs.rdx);
}

bool step_once(pid_t pid, int& status) {
  return ::ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr) == 0 &&
         ::waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status) &&
         WSTOPSIG(status) == SIGTRAP;
}

/// True if the second process would wait for the first.
bool is_in_the_way(World& w, Token token, const Duel& duel) {
  Segment& s = *w.s;
  if (s.header().heap_lock.owner() == token) return true;
  for (const std::uint32_t id : w.channels) {
    ChannelRow& row = s.channel(index_of(id));
    if (duel.second_sends && row.sender.lock.owner() == token) return true;
    if (duel.second_receives && row.receiver.lock.owner() == token) return true;
  }
  return false;
}

/// One schedule. Returns how many instructions the first process did before it stopped, less than
/// `stop_at` if it was done before.
std::uint64_t run_once(const Duel& duel, std::uint64_t stop_at, bool& skipped) {
  World w;
  Failure why;
  w.s = Segment::create(8U << 20, why);
  duel.set_up(w);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    duel.first_prepare(w);
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(98);
    ::raise(SIGSTOP);
    duel.first(w);
    w.op(kDone);
    for (;;) ::raise(SIGSTOP);
  }
  int status = 0;
  (void)::waitpid(pid, &status, __WALL);
  must(WIFSTOPPED(status), __LINE__, duel, 0, "the first process did not start");
  ::ptrace(PTRACE_SETOPTIONS, pid, nullptr, PTRACE_O_EXITKILL);
  Token token = 0;
  for (std::uint32_t i = 0; i < w.s->header().slots_high.load(); ++i)
    if (w.s->slot(i).pid == static_cast<std::uint32_t>(pid))
      token = slot_token(i, w.s->slot(i).state.load());
  duel.after_fork(w);

  std::uint64_t done = 0;
  while (done < stop_at && w.page->op.load() != kDone) {
    if (!step_once(pid, status)) {
      must(false, __LINE__, duel, done, "it ended, line " + std::to_string(w.page->line.load()));
      break;
    }
    ++done;
  }
  skipped = is_in_the_way(w, token, duel);
  if (skipped && stop_at != ~0ULL) {
    ::kill(pid, SIGKILL);
    (void)::waitpid(pid, &status, __WALL);
    return done;
  }
  if (!skipped) duel.second(w);
  if (!duel.must_not_sleep && w.page->op.load() != kDone) {
    ::ptrace(PTRACE_CONT, pid, nullptr, nullptr);
    (void)::waitpid(pid, &status, __WALL);
    must(w.page->op.load() == kDone, __LINE__, duel, done,
         "it ended, line " + std::to_string(w.page->line.load()));
    w.op(kDone);
  }
  // By steps where sleeping would be wrong.
  for (std::uint64_t more = 0; w.page->op.load() != kDone; ++more) {
    if (more > 2'000'000) {
      must(false, __LINE__, duel, done, "the first process comes to no end");
      break;
    }
    if (!step_once(pid, status)) {
      must(false, __LINE__, duel, done, "it ended, line " + std::to_string(w.page->line.load()));
      break;
    }
    if (!duel.must_not_sleep || skipped) continue;
    user_regs_struct regs{};
    ::ptrace(PTRACE_GETREGS, pid, nullptr, &regs);
    if (!would_sleep(w, pid, regs)) continue;
    must(false, __LINE__, duel, done, "it goes to sleep and nobody will wake it");
    break;
  }
  ::kill(pid, SIGKILL);
  do {  // a stop that it was about to report comes first
    (void)::waitpid(pid, &status, __WALL);
  } while (!WIFEXITED(status) && !WIFSIGNALED(status));
  if (skipped) return done;
  duel.then(w);
  (void)reap_all(*w.s);
  const Census census = take_census(*w.s, true);
  for (const std::string& problem : census.problems) must(false, __LINE__, duel, done, problem);
  must(census.processes == 1, __LINE__, duel, done, "the dead have a seat");
  return done;
}

void fight(const Duel& duel) {
  std::fflush(nullptr);
  bool skipped = false;
  const std::uint64_t length = run_once(duel, ~0ULL, skipped);
  const std::uint64_t points = std::min(length, length > 3000 ? kPointsOfMany : kPoints);
  std::uint64_t tried = 0;
  const bool each = duel.each_until != 0;
  for (std::uint64_t i = 0; i <= (each ? duel.each_until : points) && check::failures < 5; ++i) {
    (void)run_once(duel, each ? i : i * length / points, skipped);
    if (!skipped) ++tried;
  }
  std::printf("     %-50s %6lu instructions, %4lu points\n", duel.name.c_str(), length, tried);
}

// ---- what they do ----

std::uint64_t allocate(World& w, std::uint64_t length) {
  Failure why;
  std::uint64_t at = 0;
  REQUIRE(w, ThreadHeap::of(*w.s).allocate(length, at, why) == Status::kOk);
  return at;
}
void shared_channel(World& w) {
  ChannelOptions options;
  options.shared = true;
  (void)add_channel(w, options);
}
void exclusive_channel(World& w) { (void)add_channel(w, {}); }
void send_one(World& w) { REQUIRE(w, send(w, 0, 8) == Status::kOk); }
/// Takes all that is there, in order.
void drain(World& w) {
  static Incoming m;
  for (;;) {
    const std::uint64_t before = w.page->received[0].load();
    const Status status = receive(w, 0, m);
    if (status == Status::kEmpty) break;
    REQUIRE(w, status == Status::kOk);
    REQUIRE(w, w.page->received[0].load() == before + 1 && number_of(*w.s, m) == before + 1);
    for (std::uint32_t b = 0; b < m.block_count; ++b)
      REQUIRE(w, free_block(*w.s, m.blocks[b].offset) == Status::kOk);
  }
}
void drain_all(World& w) {
  drain(w);
  REQUIRE(w, w.page->received[0].load() == w.page->sent[0].load());
}
Token make_dead(World& w) {
  // A claimed seat whose life byte is let go is as dead as a killed process.
  const int fd = platform::reopen(w.s->fd());
  Token token = 0;
  REQUIRE(w, claim_slot(*w.s, fd, true, token) == Status::kOk);
  const std::uint64_t at = allocate(w, 300);
  BlockPlace p{};
  REQUIRE(w, w.s->place(at, p));
  w.s->page(p.head).slot_set.fetch_or(slot_bit(token));
  store_holder(*w.s, p, by_process(token));
  platform::close_fd(fd);
  return token;
}
void one_view(World& w) {
  auto* view = new LiveView;
  view->block = allocate(w, 3000);
  w.s->add_view(*view);
  w.views.push_back(view);
}

TEST(what_was_sent_before_the_end_is_received_before_the_end) {
  for (const auto make : {shared_channel, exclusive_channel}) {
    Duel duel{.name = "D7: receive against send and close"};
    duel.set_up = make;
    duel.after_fork = [](World& w) { w.rx[0]->close(); };
    duel.first_prepare = [](World& w) { w.tx[0]->close(); };
    duel.first = [](World& w) {
      static Incoming m;
      Status status;
      do {
        Wait wait;
        status = w.rx[0]->receive_slice(m, 0, wait);
      } while (status == Status::kEmpty || status == Status::kSlice);
      REQUIRE(w, status == Status::kOk);
    };
    duel.second = [](World& w) { send_one(w), w.tx[0]->close(); };
    duel.second_sends = true;
    bool skipped = false;
    for (std::uint64_t at = 0; at <= 1000 && check::failures < 5; at += 3)
      (void)run_once(duel, at, skipped);
  }
}

TEST(a_receiver_never_sleeps_over_a_message) {
  Duel duel{.name = "D1: wait against send"};
  duel.set_up = shared_channel;
  duel.must_not_sleep = true;
  duel.first = [](World& w) {
    static Incoming m;
    Wait wait;
    (void)w.rx[0]->receive_slice(m, platform::kForever, wait);
  };
  duel.second = send_one;
  duel.second_sends = true;
  fight(duel);
}

TEST(a_sender_never_sleeps_over_room) {
  Duel duel{.name = "D1: wait for room against receive"};
  duel.set_up = [](World& w) {
    ChannelOptions options;
    options.shared = true;
    options.max_items = 1;
    (void)add_channel(w, options), send_one(w);
  };
  duel.must_not_sleep = true;
  duel.first = [](World& w) {
    Outgoing m;
    const std::uint64_t number = 2;
    m.payload = &number, m.payload_size = 8;
    Wait wait;
    Failure why;
    (void)w.tx[0]->send_slice(m, platform::kForever, why, wait);
  };
  duel.second = [](World& w) {
    static Incoming m;
    REQUIRE(w, receive(w, 0, m) == Status::kOk);
  };
  duel.second_receives = true;
  fight(duel);
}

TEST(messages_pass_while_the_other_end_is_in_mid_step) {
  for (const auto make : {shared_channel, exclusive_channel}) {
    Duel link{.name = "link a ring against receive"};
    link.set_up = [make](World& w) {
      make(w);
      for (int i = 0; i < 10; ++i) REQUIRE(w, send(w, 0, 1500) == Status::kOk);
    };
    if (make == exclusive_channel)
      link.set_up = [make](World& w) { make(w); };  // the first process must be the only sender
    link.first_prepare = [make](World& w) {
      REQUIRE(w, free_block(*w.s, allocate(w, 60'000)) == Status::kOk);  // room for the ring, warm
      if (make == exclusive_channel)
        for (int i = 0; i < 10; ++i) REQUIRE(w, send(w, 0, 1500) == Status::kOk);
    };
    link.first = [](World& w) { REQUIRE(w, send(w, 0, 1500) == Status::kOk); };
    link.second = drain;
    link.second_receives = true;
    link.then = drain_all;
    fight(link);
  }
  Duel move{.name = "move to the next ring against send"};
  move.set_up = [](World& w) {
    shared_channel(w);
    for (int i = 0; i < 12; ++i) REQUIRE(w, send(w, 0, 1500) == Status::kOk);
  };
  move.first_prepare = [](World& w) {
    static Incoming m;
    for (int i = 0; i < 10; ++i) REQUIRE(w, receive(w, 0, m) == Status::kOk);
  };
  move.first = [](World& w) {
    static Incoming m;
    REQUIRE(w, receive(w, 0, m) == Status::kOk);
  };
  move.second = [](World& w) { REQUIRE(w, send(w, 0, 1500) == Status::kOk); };
  move.second_sends = true;
  move.then = drain_all;
  fight(move);
}

TEST(a_reaper_in_mid_walk_takes_nothing_that_is_in_flight) {
  Duel duel{.name = "reap against receive and send"};
  duel.set_up = [](World& w) {
    shared_channel(w);
    for (int i = 0; i < 12; ++i) REQUIRE(w, send(w, 0, 1500, 1, 300) == Status::kOk);
  };
  duel.after_fork = make_dead;
  duel.first = [](World& w) { (void)reap_all(*w.s); };
  duel.second = [](World& w) {
    drain_all(w);
    for (int i = 0; i < 12; ++i) REQUIRE(w, send(w, 0, 1500, 1, 300) == Status::kOk);
  };
  duel.second_sends = duel.second_receives = true;
  duel.then = drain_all;
  fight(duel);
}

TEST(an_ownerless_slab_goes_back_whoever_is_last) {
  const auto set_up = [](World& w) {
    std::uint64_t at[2] = {};
    std::thread([&] { at[0] = allocate(w, 300), at[1] = allocate(w, 300); }).join();
    // One of the two for the first process, which is not there yet: in a message.
    shared_channel(w);
    Outgoing m;
    m.payload = "12345678", m.payload_size = 8, m.block_count = 1, m.blocks[0] = {at[0], 300};
    Failure why;
    REQUIRE(w, w.tx[0]->try_send(m, platform::kForever, why) == Status::kOk);
    w.page->values[0] = at[0], w.page->values[1] = at[1];
  };
  const auto take = [](World& w) {
    static Incoming m;
    REQUIRE(w, w.rx[0]->try_receive(m, platform::kForever) == Status::kOk);
  };
  const auto free_one = [](int i) {
    return [i](World& w) { REQUIRE(w, free_block(*w.s, w.page->values[i]) == Status::kOk); };
  };
  const auto only_the_ring = [](World& w) { REQUIRE(w, take_census(*w.s, true).slabs == 1); };
  Duel frees{.name = "free against free"};
  frees.set_up = set_up, frees.first_prepare = take;
  frees.first = free_one(0), frees.second = free_one(1), frees.then = only_the_ring;
  fight(frees);
  Duel steals{.name = "steal against free"};
  steals.set_up = set_up;
  steals.first_prepare = [=](World& w) { take(w), free_one(0)(w); };
  steals.first = [](World& w) { steal_empty_slabs(*w.s); };
  steals.second = free_one(1), steals.then = only_the_ring;
  fight(steals);
  Duel orphans{.name = "end of a thread against free"};
  orphans.set_up = [](World& w) { shared_channel(w); };
  orphans.first_prepare = [](World& w) { REQUIRE(w, send(w, 0, 8, 1, 300) == Status::kOk); };
  orphans.first = [](World& w) { ThreadHeap::of(*w.s).abandon(); };
  orphans.second = drain_all, orphans.then = only_the_ring;
  fight(orphans);
}

TEST(a_reaper_in_mid_walk_believes_nothing_in_a_slab_that_went) {
  Duel duel{.name = "leave against steal and write"};
  duel.first_prepare = [](World& w) {
    w.page->values[0] = allocate(w, 300), w.page->values[1] = w.s->token();
    REQUIRE(w, free_block(*w.s, w.page->values[0]) == Status::kOk);
  };
  duel.first = [](World& w) { leave(*w.s, w.s->token()); };
  duel.second = [](World& w) {
    BlockPlace p{};
    if (!w.s->place(w.page->values[0], p)) return;
    steal_empty_slabs(*w.s);
    if (Run::unpack(w.s->run(p.head).load()).state != RunState::kFree) return;
    // Where headers were, there are somebody's bytes now, which look like a message of the leaving.
    const auto token = static_cast<Token>(w.page->values[1].load());
    for (std::uint32_t i = 0; i < p.count; ++i) {
      BlockHeader& header = w.s->block(w.s->page_offset(p.head) + i * p.size());
      header.holder = holder_word({}, by_process(token));
      header.lease = Lease{.channel = 7, .kind = 0, .tag = 0, .buffers = 0, .taken = true}.pack();
    }
  };
  fight(duel);
}

TEST(shares_of_a_block_are_given_and_dropped_in_any_order) {
  Duel drops{.name = "drop against drop"};
  drops.set_up = one_view;
  drops.first = [](World& w) { REQUIRE(w, drop_block(*w.s, w.views[0]->block) == Status::kOk); };
  drops.second = drops.first;
  drops.then = [](World& w) { REQUIRE(w, take_census(*w.s, true).entries == 0); };
  fight(drops);
  Duel shares{.name = "share against reap"};
  shares.each_until = 450;  // the share; then come the drops
  shares.first_prepare = one_view;
  shares.first = [](World& w) {
    REQUIRE(w, share_block(*w.s, w.views[0]->block, w.s->token()) == Status::kOk);
    REQUIRE(w, drop_block(*w.s, w.views[0]->block) == Status::kOk);
    Holder holder{};
    BlockPlace p{};
    REQUIRE(w, w.s->place(w.views[0]->block, p) && read_holder(*w.s, p, holder));
    REQUIRE(w, holder.kind == HolderKind::kEntry);  // one share is left
    REQUIRE(w, drop_block(*w.s, w.views[0]->block) == Status::kOk);
  };
  shares.after_fork = make_dead;
  shares.second = [](World& w) { (void)reap_all(*w.s); };
  shares.then = [](World& w) { REQUIRE(w, take_census(*w.s, true).entries == 0); };
  fight(shares);
}

TEST(what_is_handed_back_to_a_channel_that_ends_is_freed) {
  const auto one_message = [](World& w) {
    ChannelOptions options;
    options.lease = true;
    (void)add_channel(w, options);
    REQUIRE(w, send(w, 0, 300) == Status::kOk);
  };
  const auto take = [](World& w) {
    static Incoming m;
    REQUIRE(w, receive(w, 0, m) == Status::kOk);
    w.page->values[0] = m.blocks[0].offset;
  };
  const auto leave = [](World& w) { w.tx[0]->close(), w.rx[0]->close(); };
  const auto give_back = [](World& w) {
    REQUIRE(w, hand_back(*w.s, w.page->values[0], by_process(w.s->token())) == Status::kOk);
  };
  const auto nothing_left = [](World& w) {
    const Census census = take_census(*w.s, true);
    REQUIRE(w, census.channels == 0 && census.returned_blocks == 0 && census.leased_blocks == 0);
    REQUIRE(w, census.process_blocks == 0 && census.ring_blocks == 0);
  };
  Duel gives{.name = "E5: hand back against the end of the channel"};
  gives.set_up = one_message;
  gives.first_prepare = [=](World& w) { take(w), leave(w); };
  gives.first = give_back, gives.second = leave, gives.then = nothing_left;
  fight(gives);
  Duel ends{.name = "E5: end of the channel against hand back"};
  ends.set_up = [=](World& w) { one_message(w), take(w); };
  ends.first = leave, ends.after_fork = leave, ends.second = give_back, ends.then = nothing_left;
  fight(ends);
}

}  // namespace

int main(int n, char** v) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(std::max(0, ::sched_getcpu())), &one);
  ::sched_setaffinity(0, sizeof one, &one);  // a stop is cheaper on one processor
  return check::run(n, v, 120);
}
