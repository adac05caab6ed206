// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ctest-arguments: --processes 16 --seconds 1 --mib 64 --blocks 5000 --channels 100
//
// many_processes.cpp - one segment and many processes: how long they need to come in, how many
// messages they move, what it costs to bury half of them, and to bury one in a large segment.
// Not a benchmark: it says what the figures are, and fails only if something is wrong.
//
//   many_processes --processes 64 --seconds 5 --mib 1024 --blocks 100000 --channels 1000
#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>
#include <cstdlib>
#include <string>

#include "fixture.hpp"
#include "ipcbuf/slots.hpp"

namespace {

using namespace fixture;

struct Options {
  std::uint64_t processes = 64;
  double seconds = 5;
  std::uint64_t mib = 1024;
  std::uint64_t blocks = 100'000;
  std::uint64_t channels = 1000;
};

struct Shared {
  std::atomic<std::uint32_t> stop;
  std::atomic<std::uint32_t> ready;
  std::atomic<std::uint64_t> sent[256];
  std::atomic<std::uint64_t> received[256];
  std::atomic<std::int64_t> attached_ns[256];
};

double ms(std::int64_t ns) { return static_cast<double>(ns) / 1e6; }

double median(std::vector<double> all) {
  if (all.empty()) return 0;
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

/// Each leaves the fork's seat and attaches as a stranger would; then all send to all.
std::string crowd(const Options& o, bool& wrong) {
  auto s = make_segment(256U << 20);
  const int fd = ::dup(s->fd());
  auto* shared = static_cast<Shared*>(
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  constexpr std::uint32_t kQueues = 4;
  std::vector<std::unique_ptr<Pair>> queues;
  for (std::uint32_t q = 0; q < kQueues; ++q) {
    ChannelOptions options = shared_ends();
    options.max_items = 1000;
    queues.push_back(std::make_unique<Pair>(*s, options));
  }
  std::vector<pid_t> pids;
  for (std::uint32_t i = 0; i < o.processes; ++i) {
    pids.push_back(check::in_child([&] {
      const std::uint32_t mine = queues[i / 2 % kQueues]->id;
      for (auto& queue : queues) queue->tx.close(), queue->rx.close();
      s.reset();  // what was inherited
      const std::int64_t begin = platform::monotonic_ns();
      Failure why;
      const auto own = Segment::attach(fd, why);
      const End end = i % 2 == 0 ? End::kSender : End::kReceiver;
      CHECK_EQ(Status::kOk, open_channel(*own, mine, end, 0));
      shared->attached_ns[i] = platform::monotonic_ns() - begin;
      ++shared->ready;
      if (end == End::kSender) {
        SenderEnd tx(*own, mine);
        std::uint64_t n = 0;
        while (shared->stop == 0 && send_number(tx, n, 1) != Status::kBroken) shared->sent[i] = ++n;
      } else {
        ReceiverEnd rx(*own, mine);
        std::uint64_t number = 0;
        while (shared->stop == 0)
          if (receive_number(rx, number, 1) == Status::kOk) ++shared->received[i];
      }
    }));
  }
  while (shared->ready < o.processes) ::usleep(1000);
  const auto total = [&] {
    std::uint64_t n = 0;
    for (std::uint32_t i = 0; i < o.processes; ++i) n += shared->received[i];
    return n;
  };
  const auto rate = [&] {
    const std::uint64_t before = total();
    const std::int64_t begin = platform::monotonic_ns();
    ::usleep(static_cast<useconds_t>(o.seconds * 1e6));
    return static_cast<double>(total() - before) * 1e9 /
           static_cast<double>(platform::monotonic_ns() - begin);
  };
  const double all_alive = rate();
  // Half of them, at one moment: one pair of every two at each channel.
  std::vector<pid_t> killed;
  for (std::uint32_t i = 0; i < o.processes; ++i)
    if (i / 8 % 2 == 0) killed.push_back(pids[i]);
  for (const pid_t pid : killed) ::kill(pid, SIGKILL);
  for (const pid_t pid : killed) CHECK_EQ(-SIGKILL, check::end_of(pid));
  const std::int64_t begin = platform::monotonic_ns();
  (void)reap_all(*s);
  const double reaped = ms(platform::monotonic_ns() - begin);
  const double half_alive = rate();
  if (half_alive == 0) wrong = true;
  shared->stop = 1;
  for (const pid_t pid : pids)
    if (std::find(killed.begin(), killed.end(), pid) == killed.end())
      CHECK_EQ(0, check::end_of(pid));
  (void)reap_all(*s);
  std::uint64_t number = 0;
  for (auto& queue : queues) {
    while (receive_number(queue->rx, number, 0) == Status::kOk) {
    }
    queue->tx.close();
    queue->rx.close();
  }
  ThreadHeap::of(*s).trim();
  const Census census = sound(*s);
  CHECK_EQ(1U, census.processes);
  CHECK_EQ(0U, census.slabs + census.channels + census.entries);
  std::vector<double> attach;
  for (std::uint32_t i = 0; i < o.processes; ++i) attach.push_back(ms(shared->attached_ns[i]));
  char text[400];
  std::snprintf(text, sizeof text,
                "\"processes\": %" PRIu64
                ", \"attach_ms_median\": %.3f, \"attach_ms_max\": %.3f, "
                "\"messages_per_s\": %.0f, \"killed\": %zu, \"reap_ms_all\": %.3f, "
                "\"messages_per_s_after\": %.0f",
                o.processes, median(attach), *std::max_element(attach.begin(), attach.end()),
                all_alive, killed.size(), reaped, half_alive);
  ::munmap(shared, sizeof(Shared));
  ::close(fd);
  return text;
}

/// What a burial costs where much is alive: `blocks` and `channels` of ours, and a child that died
/// with a hold on every end, and besides with nothing, with blocks, with channels of its own.
std::string burials(const Options& o) {
  const auto s = make_segment(std::max<std::uint64_t>(2 * o.mib, 64) << 20);
  check::Random random{7};
  const std::uint64_t each = (o.mib << 20) * 9 / 10 / std::max<std::uint64_t>(o.blocks, 1);
  for (std::uint64_t i = 0; i < o.blocks; ++i)
    (void)allocate(*s, 1 + random.below(std::max<std::uint64_t>(2 * each, 2)));
  std::vector<std::unique_ptr<Pair>> channels;
  for (std::uint64_t i = 0; i < o.channels; ++i) {
    channels.push_back(std::make_unique<Pair>(*s, ChannelOptions{}));
    for (std::uint64_t n = 0; n < 3; ++n) CHECK_EQ(Status::kOk, send_number(channels[i]->tx, n, 0));
  }
  const std::uint64_t committed = std::uint64_t{s->committed_pages()} << kPageShift;
  const auto bury = [&](auto&& body) {
    std::vector<double> times;
    for (int round = 0; round < 11; ++round) {
      int ready[2];
      CHECK_EQ(0, ::pipe(ready));
      const pid_t pid = check::in_child([&] {
        body();
        (void)!::write(ready[1], "y", 1);
        for (;;) ::pause();
      });
      char c = 0;
      CHECK_EQ(1L, ::read(ready[0], &c, 1));
      ::close(ready[0]), ::close(ready[1]);
      (void)check::kill_and_wait(pid);
      const std::int64_t begin = platform::monotonic_ns();
      CHECK_EQ(1, reap_all(*s));
      times.push_back(ms(platform::monotonic_ns() - begin));
    }
    return median(times);
  };
  const double nothing = bury([] {});
  const double few = bury([&] {
    for (int i = 0; i < 100; ++i) (void)allocate(*s, 500);
  });
  const double taken = bury([&] {
    std::uint64_t number = 0;
    for (int i = 0; i < 10; ++i) {
      Pair own(*s, ChannelOptions{});
      (void)send_number(own.tx, 1, 0);
      (void)receive_number(own.rx, number, 0);
    }
    for (int i = 0; i < 100; ++i) (void)allocate(*s, 500);
  });
  const Census census = sound(*s);
  char text[400];
  std::snprintf(text, sizeof text,
                "\"committed_mib\": %" PRIu64 ", \"live_blocks\": %" PRIu64
                ", \"channels\": %" PRIu64
                ", \"reap_ms_nothing\": %.3f, \"reap_ms_100_blocks\": %.3f, "
                "\"reap_ms_100_blocks_10_channels\": %.3f",
                committed >> 20, census.process_blocks, census.channels, nothing, few, taken);
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--processes")
      o.processes = std::clamp<std::uint64_t>(std::strtoull(argv[i + 1], nullptr, 10), 2, 256);
    else if (name == "--seconds")
      o.seconds = std::atof(argv[i + 1]);
    else if (name == "--mib")
      o.mib = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--blocks")
      o.blocks = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--channels")
      o.channels = std::strtoull(argv[i + 1], nullptr, 10);
    else
      return std::fprintf(stderr, "what is %s?\n", argv[i]), 2;
  }
  check::watchdog(600);
  bool wrong = false;
  const std::string first = crowd(o, wrong);
  const std::string second = burials(o);
  std::printf("{\"test\": \"many_processes\", %s, %s, \"wrong\": %d}\n", first.c_str(),
              second.c_str(), check::failures + (wrong ? 1 : 0));
  return check::failures == 0 && !wrong ? 0 : 1;
}
