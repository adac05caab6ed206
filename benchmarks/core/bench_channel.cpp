// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// bench_channel.cpp - records of 8 bytes from one process to another: a native channel against a
// bare ring.
//
//   bench_channel [--rounds 11] [--seconds 0.4] [--only TEXT] [--json FILE]
//
// Overview
//   The bare ring is what one writes without thinking of crashes or sleep: 1,024 slots of 8 bytes,
//   an index per side on a line of its own, the other side's index as last seen kept privately,
//   one release store per message. Both sides spin for ever.
//   The channels do what they always do: doorbell, liveness, one owner per end, exact counts.
//
//   Sender and receiver are processes pinned to two cores. In each round every contender has its
//   turn, in an order that rotates. The clock runs from the first message received to the last;
//   every message is compared with what was sent.
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/segment.hpp"

namespace {

using namespace ipcbuf;

constexpr std::uint64_t kSlots = 1024;
constexpr std::uint64_t kWarmUp = 20'000;  // messages in front of the first that counts

std::uint64_t message_of(std::uint64_t number) noexcept { return number * 0x9E3779B97F4A7C15; }

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "bench_channel: %s\n", what);
  std::_Exit(2);
}

// ---- the contenders: each sends a number and receives one, waiting as it does ----

/// In shared memory that both processes have mapped.
class BareRing {
 public:
  explicit BareRing(std::uint64_t) {
    void* const at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) fail("no memory");
    shared_ = new (at) Shared;
  }
  BareRing(const BareRing&) = delete;
  BareRing& operator=(const BareRing&) = delete;
  ~BareRing() { ::munmap(shared_, sizeof(Shared)); }

  void send(std::uint64_t value) noexcept {
    while (mine_ - others_ == kSlots) {
      others_ = shared_->read.load(std::memory_order_acquire);
      if (mine_ - others_ == kSlots) platform::cpu_pause();
    }
    shared_->slots[mine_ % kSlots] = value;
    shared_->write.store(++mine_, std::memory_order_release);
  }
  std::uint64_t receive() noexcept {
    while (mine_ == others_) {
      others_ = shared_->write.load(std::memory_order_acquire);
      if (mine_ == others_) platform::cpu_pause();
    }
    const std::uint64_t value = shared_->slots[mine_ % kSlots];
    shared_->read.store(++mine_, std::memory_order_release);
    return value;
  }

 private:
  struct Shared {
    alignas(64) std::atomic<std::uint64_t> write{0};
    alignas(64) std::atomic<std::uint64_t> read{0};
    alignas(64) std::uint64_t slots[kSlots];
  };
  Shared* shared_;
  std::uint64_t mine_ = 0;    // each process uses its own copy
  std::uint64_t others_ = 0;  // as last seen
};

/// The ring of our channels (ring.hpp) alone: the same records, as many of them.
class RecordRing {
 public:
  explicit RecordRing(std::uint64_t) {
    void* const at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) fail("no memory");
    shared_ = new (at) Shared;
    ring_ = {&shared_->header, shared_->data, kCapacity};
  }
  RecordRing(const RecordRing&) = delete;
  RecordRing& operator=(const RecordRing&) = delete;
  ~RecordRing() { ::munmap(shared_, sizeof(Shared)); }

  void send(std::uint64_t value) noexcept {
    RingWriter<> writer(ring_, seen_);
    std::byte* at = writer.room(kSize);
    while (at == nullptr) {
      platform::cpu_pause();
      at = writer.room(kSize);
    }
    std::memcpy(at + kRecordHeader, &value, sizeof value);
    writer.publish({kSize, sizeof value, RecordKind::kRaw, false, 0}, 0);
  }
  std::uint64_t receive() noexcept {
    RingReader<> reader(ring_, seen_);
    RecordHeader header{};
    std::uint64_t cumulative = 0;
    const std::byte* at = nullptr;
    while (reader.front(header, cumulative, at) != Front::kRecord) platform::cpu_pause();
    std::uint64_t value = 0;
    std::memcpy(&value, at, sizeof value);
    reader.pop(header);
    return value;
  }

 private:
  static constexpr std::uint32_t kSize = record_size(sizeof(std::uint64_t), 0);
  static constexpr std::uint32_t kCapacity = kSlots * kSize;
  struct Shared {
    alignas(64) RingHeader header{};
    alignas(64) std::byte data[kCapacity];
  };
  Shared* shared_;
  Ring<> ring_;
  Atomic<std::uint64_t> seen_{0};  // each process uses its own copy
};

class Channel {
 public:
  Channel(std::uint64_t max_items, bool shared) {
    Failure why;
    segment_ = Segment::create(64U << 20, why);
    ChannelOptions options;
    options.max_items = max_items;
    options.shared = shared;
    if (segment_ == nullptr || create_channel(*segment_, options, id_, why) != Status::kOk)
      fail("no channel");
    sender_ = std::make_unique<SenderEnd>(*segment_, id_);
    receiver_ = std::make_unique<ReceiverEnd>(*segment_, id_);
  }

  void send(std::uint64_t value) {
    Outgoing m;
    m.payload = &value;
    m.payload_size = sizeof value;
    Status status = sender_->try_send(m, 0, why_);
    if (status != Status::kOk) [[unlikely]] {
      Wait wait;
      while (status == Status::kFull || status == Status::kContended || status == Status::kSlice)
        status = sender_->send_slice(m, platform::kForever, why_, wait);
      sender_->finish_wait(wait);
      if (status != Status::kOk) fail("send");
    }
  }
  std::uint64_t receive() {
    Status status = receiver_->try_receive(incoming_, 0);
    if (status != Status::kOk) [[unlikely]] {
      Wait wait;
      while (status == Status::kEmpty || status == Status::kContended || status == Status::kSlice)
        status = receiver_->receive_slice(incoming_, platform::kForever, wait);
      receiver_->finish_wait(wait);
      if (status != Status::kOk) fail("receive");
    }
    if (incoming_.payload_size != sizeof(std::uint64_t)) fail("a message of another length");
    std::uint64_t value = 0;
    std::memcpy(&value, incoming_.payload, sizeof value);
    return value;
  }

 private:
  std::shared_ptr<Segment> segment_;
  std::uint32_t id_ = 0;
  std::unique_ptr<SenderEnd> sender_;
  std::unique_ptr<ReceiverEnd> receiver_;
  Incoming incoming_;
  Failure why_;
};
struct BoundedChannel : Channel {
  explicit BoundedChannel(std::uint64_t) : Channel(kSlots, false) {}
};
struct SharedChannel : Channel {
  explicit SharedChannel(std::uint64_t) : Channel(kSlots, true) {}
};

// ---- one turn ----

struct Figures {
  double rate = 0;     // messages per second
  double cpu_ns = 0;   // per message, of both processes
  double seconds = 0;  // from the first message to the last
};

void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (::sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
}

double cpu_seconds(int who) {
  rusage use{};
  ::getrusage(who, &use);
  return static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
         static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
}

/// The receiver's part; the sender is a child of it.
template <class Contender>
Figures run(std::uint64_t messages, const int (&cores)[2]) {
  Contender contender(messages);
  const std::uint64_t all = messages + kWarmUp;
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    pin(cores[1]);
    for (std::uint64_t i = 0; i < all; ++i) contender.send(message_of(i));
    ::_exit(0);
  }
  pin(cores[0]);
  std::uint64_t wrong = 0;
  std::int64_t begin = 0;
  for (std::uint64_t i = 0; i < all; ++i) {
    if (i == kWarmUp) begin = platform::monotonic_ns();
    wrong += contender.receive() != message_of(i) ? 1 : 0;
  }
  const double seconds = static_cast<double>(platform::monotonic_ns() - begin) * 1e-9;
  int status = 0;
  if (::waitpid(child, &status, 0) != child || status != 0) fail("the sender failed");
  if (wrong != 0) fail("messages that differ from what was sent");
  const double cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN);
  return {static_cast<double>(messages) / seconds, cpu / static_cast<double>(all) * 1e9, seconds};
}

struct Player {
  const char* name;
  const char* key;
  Figures (*turn)(std::uint64_t messages, const int (&cores)[2]);
  std::uint64_t messages = 400'000;
  std::vector<Figures> turns = {};
};

/// In a process of its own, so that every turn begins alike.
Figures play(const Player& player, const int (&cores)[2]) {
  int ends[2];
  if (::pipe(ends) != 0) fail("pipe");
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    const Figures figures = player.turn(player.messages, cores);
    ::_exit(::write(ends[1], &figures, sizeof figures) == sizeof figures ? 0 : 1);
  }
  ::close(ends[1]);
  Figures figures;
  if (::read(ends[0], &figures, sizeof figures) != sizeof figures) fail(player.name);
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  return figures;
}

// ---- the table ----

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n == 0 ? 0 : (values[(n - 1) / 2] + values[n / 2]) / 2;
}

template <class Of>
std::vector<double> all(const Player& player, Of&& of) {
  std::vector<double> values;
  for (const Figures& f : player.turns) values.push_back(of(f));
  return values;
}

double rate_of(const Figures& f) { return f.rate; }
double cpu_of(const Figures& f) { return f.cpu_ns; }

/// The share of the bare ring's rate, of each round.
std::vector<double> shares(const Player& bare, const Player& player) {
  std::vector<double> values;
  for (std::size_t i = 0; i < player.turns.size() && i < bare.turns.size(); ++i)
    values.push_back(player.turns[i].rate / bare.turns[i].rate);
  std::sort(values.begin(), values.end());
  return values;
}

void print(const std::vector<Player>& players) {
  std::printf("%-34s %14s %9s %8s %s\n", "records of 8 bytes", "messages/s", "cpu ns", "share",
              "(lowest to highest of a round)");
  for (const Player& p : players) {
    const std::vector<double> share = shares(players[0], p);
    std::printf("%-34s %13.1fM %9.1f %7.1f%% (%.1f%% to %.1f%%)\n", p.name,
                median(all(p, rate_of)) * 1e-6, median(all(p, cpu_of)),
                100 * median(all(p, rate_of)) / median(all(players[0], rate_of)),
                100 * share.front(), 100 * share.back());
  }
}

/// As the other benchmarks write a row (harness.py).
void write_json(const std::vector<Player>& players, const char* path) {
  std::FILE* const out = std::strcmp(path, "-") == 0 ? stdout : std::fopen(path, "w");
  if (out == nullptr) fail(path);
  std::fprintf(out, "{\"contenders\": {");
  for (const Player& p : players) {
    std::fprintf(out, "%s\"%s\": {\"name\": \"%s\", \"turns\": [", &p == players.data() ? "" : ", ",
                 p.key, p.name);
    for (const Figures& f : p.turns)
      std::fprintf(out, "%s{\"messages/s\": %.6g, \"cpu \\u00b5s/message\": %.4g}",
                   &f == p.turns.data() ? "" : ", ", f.rate, f.cpu_ns * 1e-3);
    std::fprintf(out, "]}");
  }
  std::fprintf(out, "}}\n");
  if (out != stdout) std::fclose(out);
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 11;
  double seconds = 0.4;
  const char* json = nullptr;
  std::string only;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--seconds") == 0) seconds = std::atof(argv[i + 1]);
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    if (std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
  }
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < 2) fail("needs two cores");
  int cores[2] = {-1, -1};
  for (int c = 0, n = 0; c < CPU_SETSIZE && n < 2; ++c)
    if (CPU_ISSET(c, &set)) cores[n++] = c;

  std::vector<Player> players;
  players.push_back({"bare ring, 1,024 slots", "bare ring", run<BareRing>});
  for (const Player& p :
       {Player{"ring.hpp alone, 1,024 records", "its ring alone", run<RecordRing>},
        Player{"channel, max_items=1024", "channel", run<BoundedChannel>},
        Player{"channel, shared ends, max_items=1024", "shared ends", run<SharedChannel>}})
    if (only.empty() || std::string(p.name).find(only) != std::string::npos) players.push_back(p);

  for (Player& p : players) {  // not counted; finds how many messages take that long
    for (int i = 0; i < 2; ++i) {
      const Figures found = play(p, cores);
      p.messages =
          std::max<std::uint64_t>(100'000, static_cast<std::uint64_t>(found.rate * seconds));
    }
  }
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < players.size(); ++i) {
      Player& p = players[(static_cast<std::size_t>(round) + i) % players.size()];
      p.turns.push_back(play(p, cores));
    }
  if (json != nullptr) write_json(players, json);
  if (json == nullptr || std::strcmp(json, "-") != 0) print(players);
  return 0;
}
