// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ctest-arguments: --kills 300 --patience 120
//
// random_kills.cpp - SIGKILL for one random worker after another, in one segment, without end.
// Not a benchmark.
//
//   random_kills --kills 10000 --seed 1
//
// Overview
//   Workers (worker.hpp) do everything at once; each life is short. The killer waits for a random
//   moment, kills one, running or asleep, and starts another in its place. After some hundred
//   kills (an epoch) it tells all to stop, takes what is left in the channels, and looks:
//     stuck    somebody did not come to an end
//     lost, doubled, reordered, torn    by the books (journal.hpp)
//     leaked   a block, channel, entry, slab or seat that is left; pages that are not free again
//     fsck     what the census says
//   The segment goes on through all epochs: what one death leaves, the next one finds.
//
//   --stop    some are stopped (SIGSTOP) and continued at random, or killed while they are stopped
//   --bomb    now and then all workers are killed at one moment
//   --soak    besides: what the killer itself has (memory, descriptors, pages of the segment) must
//             be at the end what it was after the first quarter of the run
#include <execinfo.h>
#include <fcntl.h>
#include <sys/eventfd.h>

#include <cinttypes>
#include <csignal>
#include <ctime>
#include <initializer_list>
#include <string>

#include "ipcbuf/slots.hpp"
#include "worker.hpp"

namespace {

using namespace stress;

struct Options {
  std::uint64_t kills = 1000;
  std::uint64_t seed = 0;
  std::uint64_t workers = 6;
  double minutes = 0;  // 0: as long as it takes
  std::uint64_t epoch = 250;
  std::uint64_t pause_us = 600;  // the longest between two kills
  std::uint64_t patience = 60;   // seconds until somebody is stuck
  std::uint64_t size_mib = 64;
  bool stop = false;
  bool bomb = false;
  bool soak = false;
  bool freeze = false;  // leaves stuck processes to a debugger
};

/// What must not grow.
struct Having {
  std::uint64_t private_kib = 0;  // the killer's own
  std::uint64_t shared_kib = 0;   // what it has touched of the segment
  std::uint64_t descriptors = 0;
  std::uint64_t committed_mib = 0;

  static Having now(Segment& s) {
    Having h;
    char line[128];
    if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
      while (std::fgets(line, sizeof line, file) != nullptr) {
        (void)std::sscanf(line, "RssAnon: %" SCNu64, &h.private_kib);
        (void)std::sscanf(line, "RssShmem: %" SCNu64, &h.shared_kib);
      }
      std::fclose(file);
    }
    for (int fd = 0; fd < 1024; ++fd)
      if (::fcntl(fd, F_GETFD) >= 0) ++h.descriptors;
    h.committed_mib = s.committed_pages() >> (20 - kPageShift);
    return h;
  }
};

struct Figures {
  Findings findings;
  std::uint64_t kills = 0;
  std::uint64_t asleep = 0;
  std::uint64_t stopped = 0;
  std::uint64_t bombs = 0;
  std::uint64_t lives = 0;  // workers, their threads and children
  std::uint64_t crashed = 0;
  std::uint64_t stuck = 0;
  std::uint64_t leaked = 0;
  std::uint64_t fsck = 0;
  std::uint64_t epochs = 0;
  std::uint64_t grown = 0;  // a soak that was not flat
  Having early, late;
  std::uint64_t doing[static_cast<std::size_t>(Doing::kCount)] = {};

  [[nodiscard]] std::uint64_t wrong() const noexcept {
    return findings.wrong() + crashed + stuck + leaked + fsck + grown;
  }
};

char state_of(pid_t pid) {
  char path[40];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return '?';
  char text[256] = {};
  const std::size_t n = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[n] = 0;
  const char* name_end = std::strrchr(text, ')');
  return name_end != nullptr && name_end[1] == ' ' ? name_end[2] : '?';
}

void sleep_us(std::uint64_t us) {
  timespec t{static_cast<time_t>(us / 1'000'000), static_cast<long>(us % 1'000'000 * 1000)};
  while (::nanosleep(&t, &t) != 0) {
  }
}

/// Everything that may tell why somebody does not go on.
void dump(Stage& stage) {
  Segment& s = *stage.segment;
  std::fprintf(stderr, "poisoned at %u, heap lock %x, pages %u\n", s.header().poisoned.load(),
               s.header().heap_lock.owner(), s.committed_pages());
  for (std::uint32_t i = 0; i < s.header().slots_high; ++i) {
    SlotRow& row = s.slot(i);
    const std::uint32_t word = row.state;
    if (slot_state(word) == SlotState::kFree) continue;
    const Token token = slot_token(i, word);
    std::fprintf(stderr, "slot %u: state %u, token %x, pid %u%s, reaper %x\n", i, word & 7, token,
                 row.pid, s.is_dead(token) ? " DEAD" : "", row.reaper.owner());
  }
  for (std::uint32_t i = 0; i < s.header().channels_high; ++i) {
    ChannelRow& row = s.channel(i);
    const ChannelWord word = ChannelWord::unpack(row.state);
    if (word.state == ChannelState::kFree) continue;
    std::fprintf(stderr, "channel %u: state %u, token %x", i, static_cast<unsigned>(word.state),
                 word.token);
    for (EndRow* end : {&row.sender, &row.receiver})
      std::fprintf(stderr, "; lock %x, owner %x, items %" PRIu64, end->lock.owner(),
                   end->owner.load(), end->items.load());
    std::fprintf(stderr, "; bells %x %x, ends %u %u", row.data.word.load(), row.room.word.load(),
                 row.sender_state().load(), row.receiver_state().load());
    for (HoldList* list : {&row.sender_holds, &row.receiver_holds}) {
      std::fprintf(stderr, "; holds");
      for (auto& cell : list->cells)
        if (cell != 0) {
          const Hold hold = Hold::unpack(cell);
          std::fprintf(stderr, " %u:%x*%u", static_cast<unsigned>(hold.kind), hold.id, hold.count);
        }
      if (list->next != 0) std::fprintf(stderr, " ...");
    }
    std::fprintf(stderr, "\n");
  }
  for (std::uint32_t i = 0; i < stage.board.actors; ++i) {
    Book& book = stage.board.books[i];
    const auto pid = static_cast<pid_t>(book.pid.load());
    if (pid <= 0 || ::kill(pid, 0) != 0) continue;
    std::fprintf(stderr, "actor %u: pid %d %c, %s of %u, step %" PRIu64 "%s\n", i, pid,
                 state_of(pid), kDoingNames[book.doing % static_cast<unsigned>(Doing::kCount)],
                 book.where.load(), book.steps.load(), book.finished != 0 ? ", finished" : "");
  }
}

Stage* shown_stage = nullptr;  // to `show_where`

/// Says where a worker crashed; `addr2line -Cfpe random_kills` reads it.
void show_where(int signal, siginfo_t* info, void*) {
  char text[200];
  Segment* s = shown_stage->segment.get();
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const auto base = s == nullptr ? 0 : reinterpret_cast<std::uintptr_t>(&s->header());
  platform::FileId id{};
  if (s != nullptr) (void)platform::file_id(s->fd(), id);
  const int n = std::snprintf(text, sizeof text,
                              "crashed: pid %d, signal %d, code %d, at %zx, which is %zx of the "
                              "segment; its file has %zx bytes\n",
                              ::getpid(), signal, info->si_code, at, at - base, id.size);
  (void)!::write(2, text, static_cast<std::size_t>(n));
  void* frames[40];
  ::backtrace_symbols_fd(frames, ::backtrace(frames, 40), 2);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

class Killer {
 public:
  explicit Killer(const Options& options)
      : options_(options),
        board_(*Board::make()),
        stage_(board_, make_segment(options.size_mib << 20), ::eventfd(0, EFD_NONBLOCK)) {
    random_.state = options.seed;
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // the children of the killed come to us
    ::prctl(PR_SET_TIMERSLACK, 1UL);
    current_ = this;
    struct sigaction action{};
    action.sa_handler = [](int) {
      std::fprintf(stderr, "stuck: the killer itself, %s\n", current_->at_);
      dump(current_->stage_);
      if (current_->options_.freeze) {
        ::kill(::getpid(), SIGSTOP);
      }
      ::_exit(2);
    };
    ::sigaction(SIGALRM, &action, nullptr);
  }

  const Figures& run() {
    const auto begin = std::chrono::steady_clock::now();
    while (figures_.kills < options_.kills && figures_.wrong() == 0 &&
           (options_.minutes == 0 || check::seconds_since(begin) < 60 * options_.minutes)) {
      epoch();
      const bool first_quarter = options_.minutes != 0
                                     ? check::seconds_since(begin) < 15 * options_.minutes
                                     : figures_.kills < options_.kills / 4;
      if (first_quarter || figures_.epochs == 1) figures_.early = Having::now(*stage_.segment);
    }
    const Having late = figures_.late = Having::now(*stage_.segment);
    const Having& early = figures_.early;
    // Of the segment it touches more and more pages, at most all; the books are empty by now.
    const std::uint64_t most_shared = stage_.segment->constants().window / 1024 + 1024;
    if (options_.soak && (late.private_kib > early.private_kib * 5 / 4 + 1024 ||
                          late.shared_kib > most_shared || late.descriptors > early.descriptors))
      ++figures_.grown;
    return figures_;
  }
  [[nodiscard]] Segment* segment() noexcept { return stage_.segment.get(); }

 private:
  [[nodiscard]] int patience() const { return static_cast<int>(options_.patience); }

  pid_t start() {
    const std::uint64_t seed = random_.next();
    at_ = "forking";
    const pid_t pid = ::fork();
    if (pid < 0) std::perror("fork"), std::abort();
    if (pid == 0) {
      ::signal(SIGALRM, SIG_DFL);
      struct sigaction show{};
      show.sa_sigaction = show_where;
      show.sa_flags = SA_SIGINFO;
      shown_stage = &stage_;
      for (const int crash : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL})
        ::sigaction(crash, &show, nullptr);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      Worker::live(stage_, seed);
    }
    return pid;
  }

  void judge(pid_t pid, int status, bool was_killed) {
    if (was_killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return;
    if (!was_killed && WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 3) return;  // its book says why
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGALRM || WTERMSIG(status) == SIGKILL))
      return;  // a grandchild
    ++figures_.crashed;
    std::fprintf(stderr, "process %d ended with status %x\n", pid, static_cast<unsigned>(status));
  }

  /// Counts it under what it did just now.
  void note(pid_t pid) {
    ++figures_.kills;
    if (state_of(pid) == 'S') ++figures_.asleep;
    for (std::uint32_t i = board_.actors; i-- > 0;) {
      if (board_.books[i].pid != static_cast<std::uint32_t>(pid)) continue;
      ++figures_.doing[board_.books[i].doing % static_cast<unsigned>(Doing::kCount)];
      return;
    }
    ++figures_.doing[0];
  }

  void kill_one(std::size_t k) {
    note(workers_[k]);
    ::kill(workers_[k], SIGKILL);
    int status = 0;
    at_ = "waiting for the killed";
    ::waitpid(workers_[k], &status, 0);
    judge(workers_[k], status, true);
    workers_[k] = start();
  }

  void kill_all() {
    ++figures_.bombs;
    for (const pid_t pid : workers_) note(pid);
    for (const pid_t pid : workers_) ::kill(pid, SIGKILL);
    for (pid_t& pid : workers_) {
      int status = 0;
      ::waitpid(pid, &status, 0);
      judge(pid, status, true);
    }
    for (pid_t& pid : workers_) pid = start();
  }

  /// Some stand still for a moment. All go on before we do anything that may wait for them.
  void stop_some() {
    std::vector<std::size_t> stopped;
    for (std::size_t k = 0; k < workers_.size(); ++k)
      if (random_.below(3) == 0) stopped.push_back(k);
    for (const std::size_t k : stopped) ::kill(workers_[k], SIGSTOP);
    sleep_us(random_.below(8 * options_.pause_us));
    if (!stopped.empty() && random_.below(2) == 0) {
      ++figures_.stopped;
      note(workers_[stopped[0]]);
      ::kill(workers_[stopped[0]], SIGKILL);
      int status = 0;
      ::waitpid(workers_[stopped[0]], &status, 0);
      judge(workers_[stopped[0]], status, true);
      for (const std::size_t k : stopped)
        if (k != stopped[0]) ::kill(workers_[k], SIGCONT);
      workers_[stopped[0]] = start();
      return;
    }
    for (const std::size_t k : stopped) ::kill(workers_[k], SIGCONT);
  }

  void epoch() {
    ::alarm(static_cast<unsigned>(4 * patience()));
    stage_.open();
    for (std::uint64_t i = 0; i < options_.workers; ++i) workers_.push_back(start());
    const std::uint64_t goal = std::min(options_.kills, figures_.kills + options_.epoch);
    while (figures_.kills < goal && board_.actors < kMaxActors / 2) {
      ::alarm(static_cast<unsigned>(patience()));
      at_ = "between two kills";
      sleep_us(random_.below(options_.pause_us));
      if (options_.bomb && random_.below(20) == 0) {
        kill_all();
      } else if (options_.stop && random_.below(4) == 0) {
        stop_some();
      } else {
        kill_one(random_.below(workers_.size()));
      }
    }
    ::alarm(static_cast<unsigned>(4 * patience()));
    ++figures_.epochs;
    figures_.lives += board_.actors;
    if (!stop_all()) return;
    look();
    board_.reset();
  }

  [[nodiscard]] bool stop_all() {
    at_ = "waiting for the end of all";
    board_.stop = 1;
    const std::int64_t until = platform::monotonic_ns() + patience() * kSecond;
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, WNOHANG);
      if (pid > 0) {
        judge(pid, status, false);
      } else if (pid < 0) {
        break;
      } else if (platform::monotonic_ns() > until) {
        ++figures_.stuck;
        std::fprintf(stderr, "stuck after %" PRIu64 " kills:\n", figures_.kills);
        dump(stage_);
        if (options_.freeze) ::kill(::getpid(), SIGSTOP);
        for (const pid_t left : workers_) ::kill(left, SIGKILL);
        return false;
      } else {
        sleep_us(200);
      }
    }
    workers_.clear();
    return true;
  }

  void look() {
    Segment& s = *stage_.segment;
    at_ = "looking";
    reap_all(s);
    Book* book = board_.take();
    if (book == nullptr) std::abort();
    {
      Worker last(stage_, *book, figures_.kills);
      last.drain();
      last.finish();
    }
    audit(board_, figures_.findings);
    problems("before the end");
    stage_.close();
    ThreadHeap::of(s).trim();
    problems("in the end");
    const Census c = take_census(s, true);
    const auto left = [&](const char* what, std::uint64_t n) {
      if (n == 0) return;
      figures_.leaked += n;
      std::fprintf(stderr, "  left: %" PRIu64 " %s\n", n, what);
    };
    left("processes", c.processes - 1);
    left("channels", c.channels);
    left("entries", c.entries);
    left("blocks of processes", c.process_blocks);
    left("blocks in flight", c.flight_blocks);
    left("blocks of rings", c.ring_blocks);
    left("blocks shared", c.shared_blocks);
    left("slabs", c.slabs);
    // Since a second of rest, some of the free pages may be the system's again.
    left("bytes of pages", c.committed_bytes - c.free_bytes - c.returned_bytes);
    if (figures_.wrong() != 0) {
      std::fprintf(stderr, "wrong after %" PRIu64 " kills, seed %" PRIu64 "\n", figures_.kills,
                   options_.seed);
      dump(stage_);
    }
  }

  void problems(const char* when) {
    const Census census = take_census(*stage_.segment, true);
    for (const std::string& problem : census.problems) {
      ++figures_.fsck;
      std::fprintf(stderr, "  fsck, %s: %s\n", when, problem.c_str());
    }
  }

  static inline Killer* current_ = nullptr;
  const Options options_;
  Board& board_;
  Stage stage_;
  check::Random random_{0};
  std::vector<pid_t> workers_;
  Figures figures_;
  const char* at_ = "";
};

void print(const Options& o, const Figures& f, Segment* segment, double seconds) {
  std::printf("{\"test\": \"random_kills\", \"seed\": %" PRIu64 ", \"workers\": %" PRIu64
              ", \"stop\": %s, \"bomb\": %s, \"seconds\": %.1f, \"kills\": %" PRIu64
              ", \"asleep\": %" PRIu64 ", \"stopped\": %" PRIu64 ", \"bombs\": %" PRIu64
              ", \"lives\": %" PRIu64 ", \"epochs\": %" PRIu64 ", \"messages\": %" PRIu64
              ", \"private_channels\": %" PRIu64 ", \"taken_by_dead\": %" PRIu64
              ", \"exhausted\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"doubled\": %" PRIu64
              ", \"reordered\": %" PRIu64 ", \"torn\": %" PRIu64 ", \"impossible\": %" PRIu64
              ", \"crashed\": %" PRIu64 ", \"stuck\": %" PRIu64 ", \"leaked\": %" PRIu64
              ", \"fsck\": %" PRIu64,
              o.seed, o.workers, o.stop ? "true" : "false", o.bomb ? "true" : "false", seconds,
              f.kills, f.asleep, f.stopped, f.bombs, f.lives, f.epochs, f.findings.messages,
              f.findings.private_channels, f.findings.taken_by_dead, f.findings.exhausted,
              f.findings.lost, f.findings.doubled, f.findings.reordered, f.findings.torn,
              f.findings.bad, f.crashed, f.stuck, f.leaked, f.fsck);
  if (segment != nullptr) {
    std::uint64_t generations = 0;
    for (std::uint32_t i = 0; i < segment->header().slots_high; ++i)
      generations = std::max(generations,
                             std::uint64_t{generation_of(slot_token(i, segment->slot(i).state))});
    std::printf(", \"reaps\": %" PRIu64 ", \"takeovers\": %" PRIu64 ", \"growths\": %" PRIu64
                ", \"slots\": %u, \"reuse_of_a_slot\": %" PRIu64 ", \"committed_mib\": %u",
                segment->header().reaps.load(), segment->header().takeovers.load(),
                segment->header().growths.load(), segment->header().slots_high.load(), generations,
                segment->committed_pages() >> (20 - kPageShift));
  }
  if (o.soak)
    std::printf(", \"grown\": %" PRIu64 ", \"private_kib_early\": %" PRIu64
                ", \"private_kib_late\": %" PRIu64 ", \"shared_kib_early\": %" PRIu64
                ", \"shared_kib_late\": %" PRIu64 ", \"descriptors_early\": %" PRIu64
                ", \"descriptors_late\": %" PRIu64 ", \"committed_mib_early\": %" PRIu64,
                f.grown, f.early.private_kib, f.late.private_kib, f.early.shared_kib,
                f.late.shared_kib, f.early.descriptors, f.late.descriptors, f.early.committed_mib);
  std::printf(", \"killed_while\": {");
  bool first = true;
  for (std::size_t i = 0; i < std::size(f.doing); ++i) {
    if (f.doing[i] == 0) continue;
    std::printf("%s\"%s\": %" PRIu64, first ? "" : ", ", kDoingNames[i], f.doing[i]);
    first = false;
  }
  std::printf("}}\n");
}

int usage() {
  std::fprintf(stderr,
               "random_kills [--kills N] [--seed N] [--workers N] [--minutes N] [--epoch KILLS]\n"
               "             [--pause-us LONGEST] [--patience S] [--size MIB] [--stop] [--bomb]\n"
               "             [--soak] [--freeze]\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::uint64_t drawn = 0;
  platform::random_bytes(&drawn, sizeof drawn);
  options.seed = drawn >> 32;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--stop") {
      options.stop = true;
    } else if (name == "--bomb") {
      options.bomb = true;
    } else if (name == "--soak") {
      options.soak = true;
    } else if (name == "--freeze") {
      options.freeze = true;
    } else if (i + 1 == argc) {
      return usage();
    } else if (name == "--minutes") {
      options.minutes = std::atof(argv[++i]);
      if (options.kills == Options{}.kills) options.kills = UINT64_MAX;
    } else {
      const std::uint64_t value = std::strtoull(argv[++i], nullptr, 10);
      if (name == "--kills")
        options.kills = value;
      else if (name == "--seed")
        options.seed = value;
      else if (name == "--workers")
        options.workers = std::max<std::uint64_t>(1, value);
      else if (name == "--epoch")
        options.epoch = std::clamp<std::uint64_t>(value, 1, 2000);
      else if (name == "--pause-us")
        options.pause_us = std::max<std::uint64_t>(1, value);
      else if (name == "--patience")
        options.patience = std::max<std::uint64_t>(1, value);
      else if (name == "--size")
        options.size_mib = std::max<std::uint64_t>(1, value);
      else
        return usage();
    }
  }
  std::fprintf(stderr, "seed %" PRIu64 "\n", options.seed);
  const auto begin = std::chrono::steady_clock::now();
  Killer killer(options);
  const Figures& figures = killer.run();
  print(options, figures, killer.segment(), check::seconds_since(begin));
  return figures.wrong() == 0 ? 0 : 1;
}
