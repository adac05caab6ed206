// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ctest-plain-only
// ctest-machine: x86_64
// ctest-timeout: 300
//
// test_single_step.cpp - a kill at every machine instruction of every operation (stepper.hpp).
//
//   test_single_step                  the run of every push
//   test_single_step --full           two-deep from every state of the first process, not a few
//   test_single_step NAME             scenarios whose name contains NAME
#include <sys/eventfd.h>

#include "check.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/lease.hpp"
#include "ipcbuf/static_area.hpp"
#include "stepper.hpp"

namespace {

using namespace stepper;

constexpr std::uint64_t kSmallBlock = 100;
constexpr std::uint64_t kLarge = 200'000;

std::uint64_t allocate(World& w, std::uint64_t length) {
  Failure why;
  std::uint64_t at = 0;
  REQUIRE(w, ThreadHeap::of(*w.s).allocate(length, at, why) == Status::kOk);
  return at;
}
void release(World& w, std::uint64_t at) { REQUIRE(w, free_block(*w.s, at) == Status::kOk); }

ChannelOptions shared_ends() {
  ChannelOptions options;
  options.shared = true;
  return options;
}
void one_channel(World& w) { (void)add_channel(w, shared_ends()); }
void one_exclusive_channel(World& w) { (void)add_channel(w, {}); }

/// A process that has its holds and does nothing.
void add_helper(World& w) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  w.helpers.push_back(pid);
}
void end_helpers(World& w) {
  for (const pid_t pid : w.helpers) (void)check::kill_and_wait(pid);
  w.helpers.clear();
}

/// Sends until the next message of `size` bytes needs another ring.
void fill_ring(World& w, std::size_t channel, std::uint32_t size) {
  const std::uint64_t ring = w.s->channel(index_of(w.channels[channel])).sender.ring.load();
  for (;;) {
    const RingHeader& header = *reinterpret_cast<RingHeader*>(w.s->payload(ring));
    const RingWord at = RingWord::unpack(header.write_word.load());
    if (header.capacity - at.index < record_size(size, 0)) return;
    REQUIRE(w, send(w, channel, size) == Status::kOk);
  }
}
void send_some(World& w, int n, std::uint32_t size = 100) {
  for (int i = 0; i < n; ++i) REQUIRE(w, send(w, 0, size) == Status::kOk);
}
void receive_one(World& w) {
  static Incoming m;
  REQUIRE(w, receive(w, 0, m) == Status::kOk);
  REQUIRE(w, number_of(*w.s, m) == w.page->received[0].load());
  for (std::uint32_t b = 0; b < m.block_count; ++b) release(w, m.blocks[b].offset);
}

void bury_the_dead(World& w) { REQUIRE(w, reap_all(*w.s) >= 1); }

std::vector<Scenario> heap_scenarios() {
  std::vector<Scenario> all;
  {
    Scenario s{.name = "allocate, slab cold"};
    s.leaves_nothing = true;
    s.stepped.act = [](World& w) { (void)allocate(w, kSmallBlock); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "allocate, slab warm"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) { release(w, allocate(w, kSmallBlock)); };
    s.stepped.act = [](World& w) {
      for (int i = 0; i < 3; ++i) {
        w.op(i);
        (void)allocate(w, kSmallBlock);
      }
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "allocate, large run, split"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) { (void)ThreadHeap::of(*w.s); };
    s.stepped.act = [](World& w) { (void)allocate(w, kLarge); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "allocate, heap grows"};
    s.leaves_nothing = true;
    s.stepped.act = [](World& w) {
      (void)allocate(w, 1'500'000), w.op(1), (void)allocate(w, 1'500'000);
    };
    s.max_size = 8U << 20;
    all.push_back(s);
  }
  {
    Scenario s{.name = "grow behind a run that is used"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) {
      Failure why;
      std::uint32_t first = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(w.s->committed_pages(), first, why) == Status::kOk);
    };
    s.stepped.act = [](World& w) {
      Failure why;
      std::uint32_t first = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(7, first, why) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "allocate until max_size, then relieve"};
    s.max_size = 1U << 20;
    s.set_up = [](World& w) { release(w, allocate(w, kLarge)); };  // an empty slab to be stolen
    s.stepped.prepare = [](World& w) { release(w, allocate(w, 300'000)); };
    s.stepped.act = [](World& w) { (void)allocate(w, 1'000'000); };
    s.in_between = true;  // the tracer's empty slab goes before the new block comes
    all.push_back(s);
  }
  {
    Scenario s{.name = "free, own block"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) { w.page->values[0] = allocate(w, kSmallBlock); };
    s.stepped.act = [](World& w) { release(w, w.page->values[0]); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "free, another's block"};
    s.leaves_nothing = true;
    s.set_up = [](World& w) {
      one_channel(w);
      REQUIRE(w, send(w, 0, 8, 1, 300) == Status::kOk);
    };
    s.stepped.prepare = [](World& w) {
      static Incoming m;
      REQUIRE(w, receive(w, 0, m) == Status::kOk);
      w.page->values[0] = m.blocks[0].offset;
    };
    s.stepped.act = [](World& w) { release(w, w.page->values[0]); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "free, last block of an ownerless slab"};
    s.leaves_nothing = true;
    s.set_up = [](World& w) {
      one_channel(w);
      const pid_t pid = check::in_child([&] { REQUIRE(w, send(w, 0, 8, 1, 300) == Status::kOk); });
      REQUIRE(w, check::end_of(pid) == 0);
      bury_the_dead(w);
    };
    s.stepped.prepare = [](World& w) {
      static Incoming m;
      REQUIRE(w, receive(w, 0, m) == Status::kOk);
      w.page->values[0] = m.blocks[0].offset;
    };
    s.stepped.act = [](World& w) { release(w, w.page->values[0]); };
    all.push_back(s);
  }
  for (const int middle : {1, 0, 2}) {
    Scenario s{.name = "free a run, neighbours " + std::string(middle == 1   ? "on both sides"
                                                               : middle == 0 ? "behind"
                                                                             : "in front")};
    s.leaves_nothing = true;
    s.stepped.prepare = [middle](World& w) {
      Failure why;
      std::uint32_t runs[5] = {};
      for (std::uint32_t& run : runs)
        REQUIRE(w, RunHeap(*w.s).allocate(3, run, why) == Status::kOk);
      for (const int i : {0, 2})
        if (i != middle || middle == 1) REQUIRE(w, RunHeap(*w.s).free(runs[i]) == Status::kOk);
      if (middle != 1) REQUIRE(w, RunHeap(*w.s).free(runs[1]) == Status::kOk);
      w.page->values[0] = runs[middle];
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, RunHeap(*w.s).free(static_cast<std::uint32_t>(w.page->values[0])) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "allocate a run, exact fit"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) {
      Failure why;
      std::uint32_t a = 0;
      std::uint32_t b = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(5, a, why) == Status::kOk);
      REQUIRE(w, RunHeap(*w.s).allocate(2, b, why) == Status::kOk);
      REQUIRE(w, RunHeap(*w.s).free(a) == Status::kOk);
    };
    s.stepped.act = [](World& w) {
      Failure why;
      std::uint32_t a = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(5, a, why) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "retire slabs (trim)"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) {
      release(w, allocate(w, kSmallBlock)), release(w, allocate(w, 3000)),
          release(w, allocate(w, kLarge));
    };
    s.stepped.act = [](World& w) { ThreadHeap::of(*w.s).trim(); };
    all.push_back(s);
  }
  // 4 MiB and more of free pages, so that some of them can be given back.
  const auto burst = [](World& w) {
    Failure why;
    std::uint32_t run = 0;
    REQUIRE(w, RunHeap(*w.s).allocate(300, run, why) == Status::kOk);
    REQUIRE(w, RunHeap(*w.s).free(run) == Status::kOk);
  };
  {
    Scenario s{.name = "give back the tail of a run, then all"};
    s.leaves_nothing = true;
    s.max_size = 8U << 20;
    s.set_up = burst;
    s.stepped.act = [](World& w) {
      REQUIRE(w, RunHeap(*w.s).give_back(150) == 150);
      w.op(1);
      REQUIRE(w, RunHeap(*w.s).give_back(UINT32_MAX) >= 128);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take a part of a returned run, free it"};
    s.leaves_nothing = true;
    s.max_size = 8U << 20;
    s.set_up = [burst](World& w) {
      burst(w);
      REQUIRE(w, RunHeap(*w.s).give_back(UINT32_MAX) >= 300);
    };
    s.stepped.act = [](World& w) {
      Failure why;
      std::uint32_t run = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(20, run, why) == Status::kOk);
      w.op(1);
      REQUIRE(w, RunHeap(*w.s).free(run) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take a run across free and returned ones"};
    s.leaves_nothing = true;
    s.max_size = 8U << 20;
    s.set_up = [burst](World& w) {
      burst(w);
      REQUIRE(w, RunHeap(*w.s).give_back(150) == 150);
    };
    s.stepped.act = [](World& w) {
      Failure why;
      std::uint32_t run = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(510, run, why) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "a thread's heap settles"};
    s.leaves_nothing = true;
    s.max_size = 24U << 20;
    s.stepped.prepare = [](World& w) {
      std::uint64_t blocks[2] = {};
      for (std::uint64_t& block : blocks) block = allocate(w, 9'000'000);
      for (const std::uint64_t block : blocks) release(w, block);
      ThreadHeap::of(*w.s).settle();
    };
    s.stepped.act = [](World& w) { ThreadHeap::of(*w.s).settle(); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "a thread ends (abandon)"};
    s.leaves_nothing = true;
    s.stepped.prepare = [](World& w) {
      release(w, allocate(w, kSmallBlock)), (void)allocate(w, 3000);
    };
    s.stepped.act = [](World& w) { ThreadHeap::of(*w.s).abandon(); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "a thread ends while a message of its is in flight"};
    s.set_up = one_channel;
    s.stepped.prepare = [](World& w) { REQUIRE(w, send(w, 0, 8, 1, 300) == Status::kOk); };
    s.stepped.act = [](World& w) { ThreadHeap::of(*w.s).abandon(); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "steal another's empty slab"};
    s.set_up = [](World& w) { release(w, allocate(w, 3000)); };
    s.stepped.act = [](World& w) { steal_empty_slabs(*w.s); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take over the heap's lock"};
    s.leaves_nothing = true;
    s.victim.act = [](World& w) { (void)allocate(w, kSmallBlock); };
    s.victim_ends = [](World& w) {
      const auto pages = static_cast<std::uint32_t>((2U << 20) >> kPageShift);
      return w.s->header().heap_lock.owner() != 0 &&
             Run::unpack(w.s->run(0).load()).length != pages;
    };
    s.stepped.act = [](World& w) { (void)allocate(w, 3000); };
    all.push_back(s);
  }
  return all;
}

std::vector<Scenario> channel_scenarios() {
  std::vector<Scenario> all;
  const auto waiting = [](World& w) {  // as if somebody slept at both bells
    ChannelRow& row = w.s->channel(index_of(w.channels[0]));
    for (BellRow* bell : {&row.data, &row.room}) bell->word.fetch_or(kBellWaiting);
  };
  const auto send_twice = [](std::uint32_t size, std::uint32_t blocks, std::uint64_t length) {
    return [=](World& w) {
      REQUIRE(w, send(w, 0, size, blocks, length) == Status::kOk);
      w.op(1);
      REQUIRE(w, send(w, 0, size, blocks, length) == Status::kOk);
    };
  };
  for (const bool shared : {true, false}) {
    const std::string end = shared ? ", shared end" : ", exclusive end";
    const auto make = shared ? one_channel : one_exclusive_channel;
    {
      Scenario s{.name = "send, small" + end};
      s.set_up = make;
      s.stepped.act = send_twice(40, 0, 0);
      all.push_back(s);
    }
    {
      Scenario s{.name = "send, in a block" + end};
      s.set_up = make;
      s.stepped.act = send_twice(8, 1, 5000);
      all.push_back(s);
    }
    {
      Scenario s{.name = "send, links a ring" + end};
      s.set_up = make;
      s.stepped.prepare = [](World& w) { fill_ring(w, 0, 1500); };
      s.stepped.act = [](World& w) { REQUIRE(w, send(w, 0, 1500) == Status::kOk); };
      s.in_between = true;  // linked, then published
      all.push_back(s);
    }
    {
      Scenario s{.name = "receive, small" + end};
      s.set_up = [make](World& w) { make(w), send_some(w, 3); };
      s.stepped.act = [](World& w) { receive_one(w), w.op(1), receive_one(w); };
      all.push_back(s);
    }
    {
      Scenario s{.name = "receive, moves to the next ring" + end};
      s.set_up = [make](World& w) { make(w), fill_ring(w, 0, 1500), send_some(w, 2, 1500); };
      s.stepped.prepare = [](World& w) {
        for (std::uint64_t n = w.page->sent[0].load(); n > 2; --n) receive_one(w);
      };
      s.stepped.act = [](World& w) { receive_one(w), w.op(1), receive_one(w); };
      s.in_between = true;  // moved on, then received
      all.push_back(s);
    }
    {
      Scenario s{.name = "create, then close" + end};
      s.leaves_nothing = true;
      s.stepped.act = [shared](World& w) {
        ChannelOptions options;
        options.shared = shared;
        Failure why;
        std::uint32_t id = 0;
        REQUIRE(w, create_channel(*w.s, options, id, why) == Status::kOk);
        w.op(1);
        SenderEnd tx(*w.s, id);
        ReceiverEnd rx(*w.s, id);
        tx.close(), w.op(2), rx.close();
      };
      all.push_back(s);
    }
    {
      Scenario s{.name = "close the last handles of a full channel" + end};
      s.leaves_nothing = true;
      s.set_up = make;
      s.after_forks = [](World& w) { w.tx[0]->close(), w.rx[0]->close(); };
      s.stepped.prepare = [](World& w) {
        fill_ring(w, 0, 1500);
        for (int i = 0; i < 3; ++i) REQUIRE(w, send(w, 0, 8, 2, 300) == Status::kOk);
      };
      s.stepped.act = [](World& w) { w.tx[0]->close(), w.op(1), w.rx[0]->close(); };
      s.vanishing = true;
      all.push_back(s);
    }
    {
      Scenario s{.name = "close one end that another process holds too" + end};
      s.set_up = make;
      s.stepped.prepare = [](World& w) { send_some(w, 2); };
      s.stepped.act = [](World& w) { w.tx[0]->close(); };
      all.push_back(s);
    }
  }
  {
    Scenario s{.name = "send, 64 blocks"};
    s.set_up = one_channel;
    s.stepped.act = [](World& w) { REQUIRE(w, send(w, 0, 8, kMaxBlocks, 64) == Status::kOk); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "receive, 3 blocks"};
    s.set_up = [](World& w) {
      one_channel(w);
      for (int i = 0; i < 2; ++i) REQUIRE(w, send(w, 0, 8, 3, 300) == Status::kOk);
    };
    s.stepped.act = [](World& w) { receive_one(w), w.op(1), receive_one(w); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "send and receive around the end of the ring"};
    s.set_up = [](World& w) {
      ChannelOptions options = shared_ends();
      options.max_items = 4;
      (void)add_channel(w, options);
      for (int i = 0; i < 9; ++i) send_some(w, 1, 1700), receive_one(w);
      send_some(w, 1, 200);
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, send(w, 0, 1700) == Status::kOk);
      w.op(1), receive_one(w), w.op(2), receive_one(w);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "send and receive with sleepers to wake"};
    s.set_up = [waiting](World& w) {
      ChannelOptions options = shared_ends();
      options.max_items = 4;
      (void)add_channel(w, options), send_some(w, 1), waiting(w);
    };
    s.stepped.act = [](World& w) {
      send_some(w, 1), w.op(1), receive_one(w), w.op(2), w.rx[0]->finish_wait({.slept = true});
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "shut down, with sleepers to wake"};
    s.set_up = [waiting](World& w) { one_channel(w), send_some(w, 2), waiting(w); };
    s.stepped.act = [](World& w) {
      REQUIRE(w, w.tx[0]->shut_down(platform::kForever) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "the descriptor that is watched"};
    s.set_up = [](World& w) {
      ChannelOptions options = shared_ends();
      options.bell = BellKind::kEventfd;
      (void)add_channel(w, options);
      w.eventfd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
      w.tx[0]->set_bell_fd(w.eventfd), w.rx[0]->set_bell_fd(w.eventfd);
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, w.rx[0]->arm() == Status::kOk);
      w.op(1), send_some(w, 1), w.op(2), receive_one(w);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "receive finds nothing, then waits a slice"};
    s.set_up = one_channel;
    s.stepped.act = [](World& w) {
      static Incoming m;
      Wait wait;
      const Status status = w.rx[0]->receive_slice(m, platform::monotonic_ns() + 5'000'000, wait);
      REQUIRE(w, status == Status::kSlice || status == Status::kEmpty);
      w.rx[0]->finish_wait(wait);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "hold in transit, open, drop"};
    s.leaves_nothing = true;
    s.set_up = one_channel;
    s.stepped.act = [](World& w) {
      const std::uint32_t id = w.channels[0];
      REQUIRE(w, hold_in_transit(*w.s, id, End::kSender) == Status::kOk);
      w.op(1);
      REQUIRE(w, open_channel(*w.s, id, End::kSender, w.s->token()) == Status::kOk);
      w.op(2);
      w.s->remove_endpoint(id, End::kSender);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take over a sender's lock"};
    s.set_up = [](World& w) { one_channel(w), send_some(w, 2); };
    s.victim.act = [](World& w) { send_some(w, 1); };
    s.victim_ends = [](World& w) {
      EndRow& end = w.s->channel(index_of(w.channels[0])).sender;
      const auto* ring = reinterpret_cast<RingHeader*>(w.s->payload(end.ring.load()));
      return end.lock.owner() != 0 && RingWord::unpack(ring->write_word.load()).items == 3;
    };
    s.stepped.act = [](World& w) {
      if (w.page->sent[0].load() == 2) w.page->sent[0].store(3);  // published, not returned
      w.op(1), send_some(w, 1);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take over a sender's lock between link and move"};
    s.set_up = [](World& w) { one_channel(w), fill_ring(w, 0, 1500); };
    s.victim.act = [](World& w) { send_some(w, 1, 1500); };
    s.victim_ends = [](World& w) {
      EndRow& end = w.s->channel(index_of(w.channels[0])).sender;
      return reinterpret_cast<RingHeader*>(w.s->payload(end.ring.load()))->next.load() != 0;
    };
    s.stepped.act = [](World& w) { send_some(w, 1, 1500); };
    all.push_back(s);
  }
  {
    Scenario s{.name = "take over a receiver's lock"};
    s.set_up = [](World& w) { one_channel(w), send_some(w, 1); };
    s.victim.act = receive_one;
    s.victim_ends = [](World& w) {
      EndRow& end = w.s->channel(index_of(w.channels[0])).receiver;
      const auto* ring = reinterpret_cast<RingHeader*>(w.s->payload(end.ring.load()));
      return end.lock.owner() != 0 && RingWord::unpack(ring->read_word.load()).items == 1;
    };
    s.stepped.act = [](World& w) {
      w.page->received[0].store(1);  // it is lost with the victim
      static Incoming m;
      REQUIRE(w, receive(w, 0, m) == Status::kEmpty);
      REQUIRE(w, w.rx[0]->pending() == 0);
      w.op(1), send_some(w, 1), w.op(2), receive_one(w);
    };
    all.push_back(s);
  }
  return all;
}

/// Takes the oldest message of a leased channel; `page->received` is what was done.
std::uint64_t take(World& w, std::uint64_t number) {
  static Incoming m;
  REQUIRE(w, receive(w, 0, m) == Status::kOk);
  REQUIRE(w, m.lease != 0 && number_of(*w.s, m) == number);
  return m.blocks[0].offset;
}
void finish(World& w, std::uint64_t at) {
  w.page->received[0].fetch_add(1);
  end_lease(*w.s, at), release(w, at);
}
void give_back(World& w, std::uint64_t at) {
  REQUIRE(w, hand_back(*w.s, at, by_process(w.s->token())) == Status::kOk);
}
/// Has taken the first of three messages, and is dead.
void dead_holder(World& w) {
  ChannelOptions options;
  options.lease = true;
  (void)add_channel(w, options), send_some(w, 3);
  const pid_t pid = check::in_child([&] { (void)take(w, 1); });
  REQUIRE(w, check::end_of(pid) == 0);
}

std::vector<Scenario> lease_scenarios() {
  std::vector<Scenario> all;
  const auto leased = [](World& w) {
    ChannelOptions options;
    options.lease = true;
    (void)add_channel(w, options);
  };
  {
    Scenario s{.name = "lease: send"};
    s.set_up = leased;
    s.stepped.act = [](World& w) {
      REQUIRE(w, send(w, 0, 300) == Status::kOk);
      w.op(1);
      REQUIRE(w, send(w, 0, 300) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: take, done"};
    s.set_up = [leased](World& w) { leased(w), send_some(w, 2); };
    s.stepped.act = [](World& w) {
      const std::uint64_t at = take(w, 1);
      w.op(1), finish(w, at);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: take, give back, take again, done"};
    s.set_up = [leased](World& w) { leased(w), send_some(w, 2); };
    s.stepped.act = [](World& w) {
      std::uint64_t at = take(w, 1);
      w.op(1), give_back(w, at);
      w.op(2), at = take(w, 1);
      w.op(3), finish(w, at);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: bury who had a message"};
    s.set_up = [leased](World& w) { leased(w), send_some(w, 3); };
    s.victim.act = [](World& w) {
      (void)take(w, 1), (void)take(w, 2);
      w.page->values[0] = 1;
    };
    s.victim_ends = [](World& w) {
      const EndRow& end = w.s->channel(index_of(w.channels[0])).receiver;
      return end.items.load() == 2 && end.lock.owner() == 0;
    };
    s.stepped.act = bury_the_dead;
    s.in_between = true;  // one message comes back, then the other
    s.own_pool = false;
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: take what the dead had"};
    s.set_up = [](World& w) { dead_holder(w), bury_the_dead(w); };
    s.stepped.act = [](World& w) {
      const std::uint64_t at = take(w, 1);
      w.op(1), finish(w, at);
      w.op(2), finish(w, take(w, 2));
    };
    s.in_between = true;
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: the channel ends with a returned message"};
    s.leaves_nothing = true;
    s.vanishing = true;
    s.set_up = leased;
    s.after_forks = [](World& w) { w.tx[0]->close(), w.rx[0]->close(); };
    s.stepped.prepare = [](World& w) {
      send_some(w, 3), give_back(w, take(w, 1));
      w.page->values[0] = take(w, 1);
    };
    s.stepped.act = [](World& w) {
      w.tx[0]->close(), w.op(1), w.rx[0]->close();
      w.op(2), give_back(w, w.page->values[0]);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "lease: drop the last share of one that was looked at in a fork"};
    s.set_up = [leased](World& w) {
      leased(w), send_some(w, 2);
      auto* view = new LiveView;
      view->block = take(w, 1);
      w.s->add_view(*view);
      w.page->values[0] = view->block;
    };
    s.after_forks = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    all.push_back(s);
  }
  return all;
}

std::vector<Scenario> process_scenarios() {
  std::vector<Scenario> all;
  const auto fork_once = [](World& w) {
    if (::fork() == 0) {
      w.op(kDone);
      for (;;) ::pause();
    }
  };
  {
    Scenario s{.name = "fork with open ends"};
    s.leaves_nothing = true;
    s.set_up = [](World& w) { one_channel(w), one_exclusive_channel(w), send_some(w, 2); };
    s.stepped.act = fork_once;
    s.follows_fork = true;
    all.push_back(s);
  }
  {
    Scenario s{.name = "fork with a live view"};
    s.leaves_nothing = true;
    s.set_up = one_channel;
    s.stepped.prepare = [](World& w) {
      auto* view = new LiveView;
      view->block = allocate(w, 3000);
      w.s->add_view(*view);
    };
    s.stepped.act = fork_once;
    s.follows_fork = true;
    all.push_back(s);
  }
  {
    Scenario s{.name = "fork while the list of holders is full"};
    s.set_up = [](World& w) {
      one_channel(w);
      for (int i = 0; i < 5; ++i) add_helper(w);
    };
    s.stepped.act = fork_once;
    s.in_between = true;  // one list of holders is longer, then the other
    all.push_back(s);
  }
  {
    Scenario s{.name = "close the last of many handles"};
    s.leaves_nothing = true;
    s.set_up = [](World& w) {
      one_channel(w);
      for (int i = 0; i < 9; ++i) add_helper(w);
    };
    s.after_forks = [](World& w) {
      w.tx[0]->close(), w.rx[0]->close();
      end_helpers(w);
      (void)reap_all(*w.s);
    };
    s.stepped.act = [](World& w) { w.tx[0]->close(), w.op(1), w.rx[0]->close(); };
    s.vanishing = true;
    all.push_back(s);
  }
  const auto viewed = [](World& w) {
    auto* view = new LiveView;
    view->block = allocate(w, 3000);
    w.s->add_view(*view);
    w.page->values[0] = view->block;
  };
  {
    Scenario s{.name = "drop a share of a block"};
    s.leaves_nothing = true;
    s.set_up = viewed;
    s.stepped.act = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "drop the last share of a block"};
    s.leaves_nothing = true;
    s.set_up = viewed;
    s.after_forks = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "drop the last share of a block of many"};
    s.leaves_nothing = true;
    s.set_up = [viewed](World& w) {
      viewed(w);
      for (int i = 0; i < 9; ++i) add_helper(w);
    };
    s.after_forks = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
      end_helpers(w);
      (void)reap_all(*w.s);
    };
    s.stepped.act = [](World& w) {
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    all.push_back(s);
  }
  const auto ticket_for = [](World& w, std::uint64_t held) {
    Failure why;
    std::uint64_t ticket = 0;
    REQUIRE(w, make_ticket(*w.s, held, ticket, why) == Status::kOk);
    return ticket;
  };
  const auto filled = [](World& w) {
    const std::uint64_t block = allocate(w, 3000);
    std::memset(w.s->payload(block), pattern(1, 0), 3000);
    return block;
  };
  const auto send_ticket = [](World& w, std::uint64_t ticket) {
    const std::uint64_t number = w.page->sent[0].load() + 1;
    Outgoing m;
    m.kind = RecordKind::kRaw;
    m.payload = &number;
    m.payload_size = sizeof number;
    m.block_count = 1;
    m.blocks[0] = {ticket, 3000};
    Failure why;
    REQUIRE(w, w.tx[0]->try_send(m, platform::kForever, why) == Status::kOk);
    w.page->sent[0].store(number);
  };
  {
    Scenario s{.name = "make tickets of a block, drop them all"};
    s.leaves_nothing = true;
    s.stepped.act = [ticket_for](World& w) {
      const std::uint64_t block = allocate(w, 3000);
      const std::uint64_t ticket = ticket_for(w, block);
      const std::uint64_t other = ticket_for(w, ticket);
      REQUIRE(w, drop_block(*w.s, block) == Status::kOk);
      release(w, ticket), release(w, other);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "move a block: share, send, let go"};
    s.set_up = one_channel;
    s.stepped.prepare = [filled](World& w) { w.page->values[0] = filled(w); };
    s.stepped.act = [ticket_for, send_ticket](World& w) {
      send_ticket(w, ticket_for(w, w.page->values[0]));
      w.op(1);
      REQUIRE(w, drop_block(*w.s, w.page->values[0]) == Status::kOk);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "receive a moved block, let go"};
    s.set_up = [ticket_for, send_ticket, filled](World& w) {
      one_channel(w);
      const std::uint64_t block = filled(w);
      send_ticket(w, ticket_for(w, block));
      REQUIRE(w, drop_block(*w.s, block) == Status::kOk);
    };
    s.stepped.act = [](World& w) {
      static Incoming m;
      REQUIRE(w, receive(w, 0, m) == Status::kOk);
      w.op(1), release(w, m.blocks[0].offset);
    };
    all.push_back(s);
  }
  {
    Scenario s{.name = "open a ticket from its text, let go"};
    s.set_up = [ticket_for](World& w) {
      const std::uint64_t block = allocate(w, 3000);
      w.page->values[0] = ticket_for(w, block);
      REQUIRE(w, drop_block(*w.s, block) == Status::kOk);
      offer_ticket(*w.s, w.page->values[0]);
    };
    s.stepped.act = [](World& w) {
      const auto text = *reinterpret_cast<TicketText*>(w.s->payload(w.page->values[0]));
      REQUIRE(w, adopt_ticket(*w.s, text) == Status::kOk);
      w.op(1), release(w, text.offset);
    };
    s.vanishing = true;
    all.push_back(s);
  }
  {
    Scenario s{.name = "fork with a view of a moved block"};
    s.leaves_nothing = true;
    s.stepped.prepare = [ticket_for](World& w) {
      const std::uint64_t block = allocate(w, 3000);
      auto* view = new LiveView;
      view->block = ticket_for(w, block);
      w.s->add_view(*view);
      REQUIRE(w, drop_block(*w.s, block) == Status::kOk);
    };
    s.stepped.act = fork_once;
    s.follows_fork = true;
    all.push_back(s);
  }
  {
    Scenario s{.name = "attach, then leave"};
    s.leaves_nothing = true;
    s.attaches = true;
    s.stepped.prepare = [](World& w) {
      char path[64];
      std::snprintf(path, sizeof path, "/proc/%d/fd/%d", static_cast<int>(::getppid()),
                    static_cast<int>(w.page->values[7].load()));
      w.eventfd = ::open(path, O_RDWR | O_CLOEXEC);
    };
    s.stepped.act = [](World& w) {
      Failure why;
      w.s = Segment::attach(w.eventfd, why);
      REQUIRE(w, w.s != nullptr);
      w.op(1);
      w.s.reset();
    };
    s.own_pool = false;
    all.push_back(s);
  }
  {
    Scenario s{.name = "leave with property"};
    s.leaves_nothing = true;
    s.attaches = true;
    s.stepped.prepare = [](World& w) {
      char path[64];
      std::snprintf(path, sizeof path, "/proc/%d/fd/%d", static_cast<int>(::getppid()),
                    static_cast<int>(w.page->values[7].load()));
      const int fd = ::open(path, O_RDWR | O_CLOEXEC);
      Failure why;
      w.s = Segment::attach(fd, why);
      REQUIRE(w, w.s != nullptr);
      Failure no;
      std::uint32_t id = 0;
      REQUIRE(w, create_channel(*w.s, {}, id, no) == Status::kOk);
      (void)allocate(w, kSmallBlock), (void)allocate(w, kLarge);
    };
    s.stepped.act = [](World& w) { w.s.reset(); };
    s.own_pool = false;
    all.push_back(s);
  }
  {
    Scenario s{.name = "bury a process that had everything"};
    s.set_up = [](World& w) { one_channel(w), one_exclusive_channel(w), send_some(w, 2); };
    s.victim.prepare = [](World& w) {
      auto* view = new LiveView;
      view->block = allocate(w, 3000);
      w.s->add_view(*view);
      (void)allocate(w, kSmallBlock), (void)allocate(w, kLarge);
      one_exclusive_channel(w);
      REQUIRE(w, send(w, 0, 8, 3, 300) == Status::kOk);
      receive_one(w);
      Failure why;
      std::uint32_t run = 0;
      REQUIRE(w, RunHeap(*w.s).allocate(2, run, why) == Status::kOk);
      w.page->op = 0;
    };
    s.victim.act = [](World& w) { REQUIRE(w, send(w, 0, 8, 3, 300) == Status::kOk); };
    s.victim_ends = [](World& w) {
      return w.s->channel(index_of(w.channels[0])).sender.lock.owner() != 0;
    };
    s.stepped.act = bury_the_dead;
    s.own_pool = false;
    all.push_back(s);
  }
  return all;
}

// ---- channels by key ----

std::uint32_t join_key(World& w, std::int64_t key, End end = End::kSender,
                       ChannelType type = ChannelType::kRecord, bool limited = false) {
  JoinRequest r;
  r.key = key_of(key);
  r.end = end;
  r.type = type;
  r.length = type == ChannelType::kStatic ? 500 : 0;
  if (limited) r.max_items = 4, r.max_bytes = 5000;
  std::uint32_t id = 0;
  Failure why;
  Status status = Status::kSlice;
  while (status == Status::kSlice) status = join_channel_slice(*w.s, r, id, why);
  REQUIRE(w, status == Status::kOk);
  return id;
}
void leave_end(World& w, std::uint32_t id, End end = End::kSender) {
  w.s->remove_endpoint(id, end);
}
void remove_key(World& w, std::int64_t key) {
  REQUIRE(w, remove_channel_slice(*w.s, key_of(key)) == Status::kOk);
}
void init_area(World& w, std::uint32_t id) {
  Status status = Status::kSlice;
  while (status == Status::kSlice) status = begin_init_slice(*w.s, id, true);
  REQUIRE(w, status == Status::kEmpty);
  auto* bytes = w.s->payload(area_block(*w.s, w.s->channel(index_of(id))));
  for (int i = 0; i < 500; i += 100) {
    REQUIRE(w, bytes[i] == std::byte{0});
    bytes[i] = std::byte{1};
  }
  end_init(*w.s, id, true);
}

std::vector<Scenario> directory_scenarios() {
  std::vector<Scenario> all;
  const auto add = [&all](const char* name, auto set_up, auto act) {
    Scenario s{.name = name};
    s.set_up = set_up;
    s.stepped.act = act;
    s.leaves_nothing = true;  // a key and its channel live as long as their users
    all.push_back(s);
    return &all.back();
  };
  const auto nothing = [](World&) {};
  add("make a channel by key, leave, make it again", nothing, [](World& w) {
    const std::uint32_t id = join_key(w, 1);
    w.op(1), leave_end(w, id), w.op(2), (void)join_key(w, 1, End::kReceiver);
  });
  add(
      "join a channel by key, leave, join again with limits",
      [](World& w) { (void)join_key(w, 1, End::kReceiver); },
      [](World& w) {
        const std::uint32_t id = join_key(w, 1);
        w.op(1), leave_end(w, id), w.op(2);
        (void)join_key(w, 1, End::kSender, ChannelType::kRecord, true);
      });
  {
    Scenario* s = add(
        "leave a channel by key as its last user",
        [](World& w) {
          w.page->values[0] = join_key(w, 1);
          (void)join_key(w, 1, End::kReceiver);
        },
        [](World& w) {
          const auto id = static_cast<std::uint32_t>(w.page->values[0].load());
          leave_end(w, id), w.op(1), leave_end(w, id, End::kReceiver);
        });
    s->after_forks = [](World& w) {
      const auto id = static_cast<std::uint32_t>(w.page->values[0].load());
      leave_end(w, id), leave_end(w, id, End::kReceiver);
    };
  }
  add(
      "remove a channel under use, then make another",
      [](World& w) { (void)join_key(w, 1), (void)join_key(w, 1, End::kReceiver); },
      [](World& w) { remove_key(w, 1), w.op(1), (void)join_key(w, 1); });
  add("make a static segment, init it, leave", nothing, [](World& w) {
    const std::uint32_t id = join_key(w, 1, End::kSender, ChannelType::kStatic);
    w.op(1), init_area(w, id), w.op(2), leave_end(w, id);
  });
  add(
      "the directory grows",
      [](World& w) {
        for (int i = 0; i < 42; ++i) (void)join_key(w, i, End::kSender, ChannelType::kAtomic);
        REQUIRE(w, w.s->header().directory_bits.load() == 6);
      },
      [](World& w) {
        (void)join_key(w, 99, End::kSender, ChannelType::kAtomic);
        REQUIRE(w, w.s->header().directory_bits.load() == 7);
      });
  {
    Scenario* s = add("take over the directory's lock from one who makes a channel", nothing,
                      [](World& w) { (void)join_key(w, 1); });
    s->victim.act = [](World& w) { (void)join_key(w, 1); };
    s->victim_ends = [](World& w) {
      return w.s->header().directory_lock.owner() != 0 && w.s->header().directory_used.load() == 1;
    };
  }
  {
    Scenario* s = add(
        "take over the directory's lock from one who removes",
        [](World& w) { (void)join_key(w, 1), (void)join_key(w, 1, End::kReceiver); },
        [](World& w) { (void)join_key(w, 1); });
    s->victim.act = [](World& w) { remove_key(w, 1); };
    s->victim_ends = [](World& w) { return (w.s->channel(0).marks.load() & kRemoved) != 0; };
  }
  {
    Scenario* s = add(
        "take over an init that was begun",
        [](World& w) { w.page->values[0] = join_key(w, 1, End::kSender, ChannelType::kStatic); },
        [](World& w) { init_area(w, static_cast<std::uint32_t>(w.page->values[0].load())); });
    s->victim.act = [](World& w) {
      init_area(w, static_cast<std::uint32_t>(w.page->values[0].load()));
    };
    s->victim_ends = [](World& w) {
      ChannelRow& row = w.s->channel(0);
      return w.s->payload(row.value.load())[300] == std::byte{1};
    };
  }
  return all;
}

/// Runs one scenario in a process of its own.
Figures run_apart(const Scenario& scenario, std::uint64_t victim_change = 0) {
  auto* figures = shared_page<Figures>();
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(250);
    Run1(scenario, *figures).run(victim_change);
    ::_exit(0);
  }
  if (const int end = check::end_of(pid); end != 0) {
    std::fprintf(stderr, "%s: the tracer ended with %d\n", scenario.name.c_str(), end);
    ++figures->failures;
  }
  const Figures out = *figures;
  ::munmap(figures, sizeof *figures);
  return out;
}

void print(const char* name, const Figures& f, double seconds) {
  std::printf("%-62s %9lu %8lu %7lu %4lu %6.2f s\n", name, f.boundaries, f.changes, f.states,
              f.failures, seconds);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  bool full = false;
  const char* only = "";
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--full") == 0) {
      full = true;
    } else {
      only = arguments[i];
    }
  }
  check::current = "single step";
  check::watchdog(full ? 7200 : 280);
  std::vector<Scenario> all = heap_scenarios();
  for (auto more :
       {channel_scenarios(), lease_scenarios(), process_scenarios(), directory_scenarios()})
    all.insert(all.end(), more.begin(), more.end());

  std::printf("%-62s %9s %8s %7s %4s\n", "scenario", "instr.", "changes", "states", "bad");
  Figures total;
  const auto add = [&total](const Figures& f) {
    total.boundaries += f.boundaries;
    total.changes += f.changes;
    total.states += f.states;
    total.failures += f.failures;
  };
  const auto begin = std::chrono::steady_clock::now();
  for (const Scenario& scenario : all) {
    if (scenario.name.find(only) == std::string::npos) continue;
    auto start = std::chrono::steady_clock::now();
    const Figures f = run_apart(scenario);
    print(scenario.name.c_str(), f, check::seconds_since(start));
    add(f);
    if (!scenario.own_pool || scenario.victim.act) continue;

    // Two-deep: kill it at one of its changes, then step the process that buries it.
    Scenario deep = scenario;
    deep.name = scenario.name + ", then its reaper";
    deep.victim = scenario.stepped;
    deep.stepped = {};
    deep.stepped.act = bury_the_dead;
    deep.follows_fork = false;
    deep.in_between = false;
    deep.leaves_nothing = true;
    Figures sum;
    start = std::chrono::steady_clock::now();
    const std::uint64_t samples = full ? f.changes : 2;
    for (std::uint64_t k = 0; k < samples && f.changes != 0; ++k) {
      const std::uint64_t at = full ? k + 1 : 1 + (2 * k + 1) * f.changes / (2 * samples);
      const Figures one = run_apart(deep, std::min(at, f.changes));
      sum.boundaries += one.boundaries;
      sum.changes += one.changes;
      sum.states += one.states;
      sum.failures += one.failures;
    }
    print("  its reaper", sum, check::seconds_since(start));
    add(sum);
  }
  print("total", total, check::seconds_since(begin));
  return total.failures == 0 ? 0 : 1;
}
