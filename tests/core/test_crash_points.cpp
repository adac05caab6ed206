// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ctest-atomics: CrashAtomics
// ctest-plain-only: a second core for the sanitizers costs more than they would find here
//
// test_crash_points.cpp - a real end of the process in front of its n-th store, for every n.
//
// The stepper (test_single_step.cpp) finds more, and only on a machine it can trace. This one
// needs nothing but fork, and never starts afresh: what one
// death leaves behind, the next one finds.
#include "fixture.hpp"
#include "ipcbuf/run_heap.hpp"

namespace {

using namespace fixture;

static_assert(std::is_same_v<Atomics, CrashAtomics>, "built for something else");

struct Stage {
  std::shared_ptr<Segment> s = make_segment(8U << 20);
  Pair shared{*s, shared_ends()};
  std::uint64_t sent = 0;
};

bool send(Stage& stage, Pair& pair, std::uint64_t number, std::uint32_t blocks,
          std::uint64_t length) {
  Outgoing out = message(&number, sizeof number);
  out.block_count = blocks;
  Failure why;
  for (std::uint32_t i = 0; i < blocks; ++i) {
    out.blocks[i] = {allocate(*stage.s, length), length};
    std::memset(stage.s->payload(out.blocks[i].offset), static_cast<int>(number + i), length);
  }
  return pair.tx.try_send(out, platform::kForever, why) == Status::kOk;
}
bool receive(Stage& stage, Pair& pair, std::uint64_t& number) {
  Incoming in;
  if (pair.rx.try_receive(in, platform::kForever) != Status::kOk) return false;
  std::memcpy(&number, in.payload, sizeof number);
  for (std::uint32_t i = 0; i < in.block_count; ++i) {
    const auto* bytes = reinterpret_cast<unsigned char*>(stage.s->payload(in.blocks[i].offset));
    for (std::uint64_t k = 0; k < in.blocks[i].length; k += 13)
      CHECK_EQ((number + i) & 255, std::uint64_t{bytes[k]});
    CHECK_EQ(Status::kOk, free_block(*stage.s, in.blocks[i].offset));
  }
  return true;
}

/// Everything that the survivor can ask of the segment after a death.
void look(Stage& stage) {
  CHECK(reap_all(*stage.s) >= 1);  // more if it died in a fork
  CHECK_EQ(0, reap_all(*stage.s));
  const Census census = sound(*stage.s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(1U, census.channels);
  CHECK_EQ(0U, census.process_blocks + census.shared_blocks + census.entries);
  std::uint64_t last = 0;
  std::uint64_t number = 0;
  while (receive(stage, stage.shared, number)) {
    CHECK(number == last + 1 || last == 0);
    last = number;
  }
  ThreadHeap::of(*stage.s).trim();
  const Census after = sound(*stage.s);
  CHECK_EQ(1U, after.ring_blocks);
  CHECK_EQ(1U, after.slabs);
}

/// Runs `work` in a child that ends in front of its first store, its second, and so on
/// (every ninth under a sanitizer).
template <class Before, class Work>
void at_every_store(Before&& before, Work&& work) {
  Stage stage;
  long n = 0;
  for (int end = 137; end == 137; n += check::kSanitized ? 9 : 1) {
    before(stage);
    const pid_t pid = check::in_child([&] {
      CrashAtomics::crash_at = CrashAtomics::stores + n;
      work(stage);
      CrashAtomics::crash_at = -1;
    });
    end = check::end_of(pid);
    CHECK(end == 137 || end == 0);
    look(stage);
    if (check::failures != 0) {
      std::fprintf(stderr, "it ended in front of store %ld\n", n);
      return;
    }
  }
  std::printf("     %ld stores\n", n);
}

void nothing(Stage&) {}

TEST(allocate_and_free) {
  at_every_store(nothing, [](Stage& stage) {
    const std::uint64_t a = allocate(*stage.s, 100);
    const std::uint64_t b = allocate(*stage.s, 300'000);
    CHECK_EQ(Status::kOk, free_block(*stage.s, a));
    CHECK_EQ(Status::kOk, free_block(*stage.s, b));
    ThreadHeap::of(*stage.s).trim();
  });
}

TEST(send_and_receive_blocks) {
  at_every_store([](Stage& stage) { CHECK(send(stage, stage.shared, 1, 2, 500)); },
                 [](Stage& stage) {
                   for (std::uint64_t i = 2; i < 5; ++i)
                     CHECK(send(stage, stage.shared, i, 3, 700));
                   std::uint64_t number = 0;
                   CHECK(receive(stage, stage.shared, number) && number == 1);
                   CHECK(receive(stage, stage.shared, number) && number == 2);
                 });
}

TEST(link_rings_and_move_on) {
  at_every_store(
      [](Stage& stage) {
        for (std::uint64_t i = 1; i < 500; ++i) CHECK(send(stage, stage.shared, i, 0, 0));
      },
      [](Stage& stage) {
        for (std::uint64_t i = 500; i < 520; ++i) CHECK(send(stage, stage.shared, i, 0, 0));
        std::uint64_t number = 0;
        while (receive(stage, stage.shared, number)) {
        }
        CHECK_EQ(519U, number);
      });
}

TEST(create_fill_and_close_a_channel) {
  for (const bool shared : {false, true})
    at_every_store(nothing, [shared](Stage& stage) {
      ChannelOptions options;
      options.shared = shared;
      Pair pair(*stage.s, options);
      CHECK(send(stage, pair, 1, 2, 100));
      pair.tx.close();
      pair.rx.close();
    });
}

TEST(shut_down_is_done_or_not) {
  for (long n = 0;; ++n) {
    Stage stage;
    CHECK(send(stage, stage.shared, 1, 0, 0));
    const pid_t pid = check::in_child([&] {
      CrashAtomics::crash_at = CrashAtomics::stores + n;
      (void)stage.shared.tx.shut_down(platform::kForever);
      CrashAtomics::crash_at = -1;
    });
    const int end = check::end_of(pid);
    CHECK(end == 137 || end == 0);
    std::uint64_t number = 0;
    CHECK(receive(stage, stage.shared, number));
    const bool goes_on = send(stage, stage.shared, 2, 0, 0);
    CHECK_EQ(goes_on ? Status::kOk : Status::kEnded, receive_number(stage.shared.rx, number, 0));
    (void)reap_all(*stage.s);
    (void)sound(*stage.s);
    if (check::failures != 0) std::fprintf(stderr, "it ended in front of store %ld\n", n);
    if (end == 0) CHECK(!goes_on);
    if (end == 0 || check::failures != 0) break;
  }
}

TEST(fork_with_a_view) {
  at_every_store(nothing, [](Stage& stage) {
    LiveView view;
    view.block = allocate(*stage.s, 1000);
    stage.s->add_view(view);
    const long crash_at = CrashAtomics::crash_at;
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(0);
    CrashAtomics::crash_at = -1;  // first wait, so that only one process is dead at a time
    CHECK_EQ(0, check::end_of(pid) & ~137);
    (void)reap_all(*stage.s);
    CrashAtomics::crash_at = crash_at;
    stage.s->remove_view(view);
    CHECK_EQ(Status::kOk, drop_block(*stage.s, view.block));
  });
}

}  // namespace

int main(int n, char** v) { return check::run(n, v); }
