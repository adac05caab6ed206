// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// worker.hpp - a process that does everything a segment can do, in random order, until it is told
// to stop or killed. What it sends and takes is in its book (journal.hpp). Memory that it keeps is
// filled with a pattern and looked at again before it goes, so memory which was given to somebody
// else too early shows.
#pragma once

#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "fixture.hpp"
#include "journal.hpp"

namespace stress {

using namespace fixture;

/// The channels that live as long as an epoch.
enum Common : std::uint32_t {
  kSmall,    // unbounded, inline
  kBlocks,   // unbounded, up to eight blocks
  kItems,    // 16 items
  kBytes,    // 64 KiB
  kEventfd,  // with a descriptor that is polled
  kBulk,     // unbounded, 2 KiB inline: links a new ring every few messages
  kMail,     // carries ends of private channels
  kCommon
};
static_assert(kCommon <= kMaxChannels);

inline ChannelOptions options_of(std::uint32_t channel) {
  ChannelOptions o = shared_ends();
  if (channel == kItems) o.max_items = 16;
  if (channel == kBytes) o.max_bytes = 64U << 10;
  if (channel == kEventfd) o.bell = BellKind::kEventfd;
  if (channel == kMail) o.max_items = 64;
  return o;
}

/// One end of each common channel, as this process has them.
struct Ends {
  Ends(Segment& s, std::uint32_t id, int bell) : tx(s, id), rx(s, id) {
    if (bell >= 0) tx.set_bell_fd(bell), rx.set_bell_fd(bell);
  }
  SenderEnd tx;
  ReceiverEnd rx;
};

struct Stage {
  Stage(Board& everybodys, std::shared_ptr<Segment> made, int eventfd)
      : board(everybodys),
        segment(std::move(made)),
        bell(eventfd),
        spare_fd(::dup(segment->fd())) {}

  Board& board;
  std::shared_ptr<Segment> segment;
  int bell;      // an eventfd, of kEventfd
  int spare_fd;  // of the segment, for those who leave and come back
  std::uint32_t ids[kCommon] = {};
  std::unique_ptr<Ends> ends[kCommon];

  void open() {
    for (std::uint32_t c = 0; c < kCommon; ++c) {
      Failure why;
      if (create_channel(*segment, options_of(c), ids[c], why) != Status::kOk) std::abort();
      ends[c] = std::make_unique<Ends>(*segment, ids[c], c == kEventfd ? bell : -1);
    }
  }
  void close() {
    for (auto& end : ends) {
      end->tx.close();
      end->rx.close();
      end.reset();
    }
  }
};

/// In front of every message.
struct Head {
  std::uint32_t actor;
  std::uint32_t channel;
  std::uint32_t number;
  std::uint32_t size;  // of the payload, this included
  // of a letter:
  std::uint32_t id;
  Token transit;
  std::uint32_t end;
  std::uint32_t maker;
  std::uint32_t made;
};

inline std::uint64_t pattern(std::uint64_t seed, std::uint64_t i) noexcept {
  return (seed + i) * 0x9E3779B97F4A7C15;
}
inline void fill(std::byte* at, std::uint64_t length, std::uint64_t seed) noexcept {
  const std::uint64_t step = length > 4096 ? 504 : 8;
  for (std::uint64_t i = 0; i + 8 <= length; i += step) {
    const std::uint64_t word = pattern(seed, i);
    std::memcpy(at + i, &word, 8);
  }
}
inline bool is_whole(const std::byte* at, std::uint64_t length, std::uint64_t seed) noexcept {
  const std::uint64_t step = length > 4096 ? 504 : 8;
  for (std::uint64_t i = 0; i + 8 <= length; i += step) {
    std::uint64_t word = 0;
    std::memcpy(&word, at + i, 8);
    if (word != pattern(seed, i)) return false;
  }
  return true;
}

class Worker {
 public:
  Worker(Stage& stage, Book& book, std::uint64_t seed) : stage_(stage), book_(&book) { be(seed); }

  /// The life of a process; does not return.
  [[noreturn]] static void live(Stage& stage, std::uint64_t seed) {
    Book* book = stage.board.take();
    if (book == nullptr) ::_exit(0);
    Worker worker(stage, *book, seed);
    std::thread second;
    if (worker.random_.below(8) == 0) {
      second = std::thread([&stage, seed] {
        if (Book* own = stage.board.take()) {
          Worker other(stage, *own, ~seed);
          other.work(UINT64_MAX);
          other.finish();
        }
      });
    } else if (worker.random_.below(8) == 0) {
      worker.come_back();
    }
    worker.work(UINT64_MAX);
    worker.finish();
    if (second.joinable()) second.join();
    worker.go();
  }

  /// As the last one in: takes what is left in the common channels.
  void drain() {
    for (std::uint32_t c = 0; c < kCommon; ++c) {
      while (take(c, 0)) {
      }
      while (!kept_.empty()) drop_one();
    }
  }
  void finish() {
    doing(Doing::kDropping);
    while (!kept_.empty()) drop_one();
    doing(Doing::kWaitingForChild);
    for (const pid_t pid : children_) wait_for(pid, 0);
    children_.clear();
    book_->finished = 1;
  }

 private:
  struct Kept {
    LiveView view;
    std::uint64_t length = 0;
    std::uint64_t seed = 0;
  };

  void be(std::uint64_t seed) {
    random_.state = seed;
    book_->pid = static_cast<std::uint32_t>(::getpid());
    me_ = stage_.board.number_of(*book_);
    // Everyone likes something else.
    for (auto& weight : weights_) weight = 1 + random_.below(12);
    weights_[4] = random_.below(2);  // fork
    weights_[5] = random_.below(3);  // letters
    weights_[7] = random_.below(2);  // reap
  }
  void doing(Doing what, std::uint32_t where = 0) noexcept {
    book_->where = where;
    book_->doing = static_cast<std::uint32_t>(what);
  }
  /// The answer `status` was not possible here.
  bool bad(int line, Status status) noexcept {
    if (book_->bad == 0) {
      book_->bad_status = static_cast<std::uint32_t>(status);
      book_->bad = static_cast<std::uint32_t>(line);
    }
    return false;
  }
  [[nodiscard]] bool is_stopped() const noexcept {
    return stage_.board.stop != 0 || book_->bad != 0;
  }
  [[nodiscard]] Segment& s() noexcept { return *stage_.segment; }
  [[nodiscard]] std::int64_t soon(std::uint64_t longest_us) noexcept {
    return platform::monotonic_ns() + static_cast<std::int64_t>(random_.below(longest_us) * 1000);
  }
  [[nodiscard]] std::uint64_t some_length() noexcept {
    const std::uint64_t most = random_.below(40) == 0 ? 400'000 : 6'000;
    return 1 + random_.below(1 + random_.below(most));
  }

  void work(std::uint64_t steps) {
    std::uint64_t all = 0;
    for (const auto weight : weights_) all += weight;
    while (steps-- > 0 && !is_stopped()) {
      book_->steps = book_->steps + 1;
      doing(Doing::kBetween);
      std::uint64_t which = random_.below(all);
      std::size_t k = 0;
      while (which >= weights_[k]) which -= weights_[k++];
      switch (k) {
        case 0:
          send_some();
          break;
        case 1:
          receive_some();
          break;
        case 2:
          allocate_one();
          break;
        case 3:
          drop_one();
          break;
        case 4:
          fork_one();
          break;
        case 5:
          send_letter();
          break;
        case 6:
          make_and_drop();
          break;
        case 7:
          tidy();
          break;
        default:
          poll_one();
          break;
      }
    }
  }

  // ---- messages ----

  bool allocate(std::uint64_t length, std::uint64_t& offset) {
    Failure why;
    const Status status = ThreadHeap::of(s()).allocate(length, offset, why);
    if (status == Status::kOk) return true;
    if (status != Status::kExhausted) return bad(__LINE__, status);
    book_->exhausted = book_->exhausted + 1;
    return false;
  }

  void free_all(const BlockRef* blocks, std::uint32_t n) {
    for (std::uint32_t i = 0; i < n; ++i)
      if (const Status status = free_block(s(), blocks[i].offset); status != Status::kOk)
        bad(__LINE__, status);
  }

  /// Sends `head` with random blocks and bytes behind it; true if it was sent.
  Status send(SenderEnd& tx, Head& head, std::uint32_t blocks, std::uint32_t bytes,
              std::int64_t until) {
    const std::uint64_t seed = std::uint64_t{head.actor} << 32 | head.number;
    alignas(8) std::byte payload[kMaxInline];
    head.size = static_cast<std::uint32_t>(sizeof head) + bytes;
    std::memcpy(payload, &head, sizeof head);
    fill(payload + sizeof head, bytes, seed);
    Outgoing out = message(payload, head.size);
    for (; out.block_count < blocks; ++out.block_count) {
      BlockRef& block = out.blocks[out.block_count];
      block.length = some_length();
      if (!allocate(block.length, block.offset)) break;
      fill(s().payload(block.offset), block.length, seed + out.block_count);
    }
    Failure why;
    Wait wait;
    Status status = Status::kSlice;
    while (status == Status::kSlice && book_->bad == 0)
      status = tx.send_slice(out, until, why, wait);
    tx.finish_wait(wait);
    if (status != Status::kOk) free_all(out.blocks, out.block_count);
    if (status == Status::kExhausted) book_->exhausted = book_->exhausted + 1;
    return status;
  }

  /// Looks at every byte; keeps one of the blocks at times and frees the others.
  bool open(const Incoming& in, Head& head) {
    if (in.payload_size < sizeof head) return false;
    std::memcpy(&head, in.payload, sizeof head);
    const std::uint64_t seed = std::uint64_t{head.actor} << 32 | head.number;
    bool whole = head.size == in.payload_size &&
                 is_whole(in.payload + sizeof head, head.size - sizeof head, seed);
    for (std::uint32_t i = 0; i < in.block_count; ++i)
      whole = whole && is_whole(s().payload(in.blocks[i].offset), in.blocks[i].length, seed + i);
    return whole;
  }
  void keep_or_free(const Incoming& in, const Head& head) {
    const std::uint64_t seed = std::uint64_t{head.actor} << 32 | head.number;
    for (std::uint32_t i = 0; i < in.block_count; ++i) {
      if (random_.below(3) == 0) {
        keep(in.blocks[i].offset, in.blocks[i].length, seed + i);
      } else {
        free_all(&in.blocks[i], 1);
      }
    }
  }

  bool send_common(std::uint32_t c, Head head, std::int64_t until) {
    SenderEnd& tx = stage_.ends[c]->tx;
    if (tx.pending() > 400) return false;
    head.actor = me_;
    head.channel = c;
    head.number = book_->done[c] + 1;
    doing(Doing::kSending, c);
    const auto blocks = static_cast<std::uint32_t>(c == kBlocks    ? 1 + random_.below(8)
                                                   : c == kBytes   ? random_.below(3)
                                                   : c == kEventfd ? random_.below(2)
                                                                   : 0);
    const auto bytes = static_cast<std::uint32_t>(c == kBulk ? 1500 + random_.below(400)
                                                  : random_.below(8) == 0 ? random_.below(900)
                                                                          : 0);
    book_->begun[c] = head.number;
    const Status status = send(tx, head, blocks, bytes, until);
    if (status == Status::kOk) {
      book_->done[c] = head.number;
      return true;
    }
    if (status != Status::kFull && status != Status::kExhausted) bad(__LINE__, status);
    return false;
  }

  void send_some() {
    auto c = static_cast<std::uint32_t>(random_.below(kMail));
    const std::uint64_t n = 1 + random_.below(12);
    for (std::uint64_t i = 0; i < n && !is_stopped(); ++i)
      if (!send_common(c, Head{}, soon(random_.below(4) == 0 ? 3000 : 1))) return;
  }

  bool take(std::uint32_t c, std::int64_t until) {
    if (!book_->has_space()) return false;
    ReceiverEnd& rx = stage_.ends[c]->rx;
    Incoming in;
    doing(Doing::kReceiving, c);
    book_->receiving = c + 1;
    Wait wait;
    Status status = Status::kSlice;
    while (status == Status::kSlice && book_->bad == 0) status = rx.receive_slice(in, until, wait);
    rx.finish_wait(wait);
    Head head{};
    if (status == Status::kOk) {
      const bool whole = open(in, head);
      book_->write({EntryKind::kTaken, !whole, head.actor, head.channel, head.number});
    }
    book_->receiving = 0;
    if (status != Status::kOk) return status == Status::kEmpty ? false : bad(__LINE__, status);
    keep_or_free(in, head);
    if (c == kMail) read_letter(head);
    return true;
  }

  void receive_some() {
    const auto c = static_cast<std::uint32_t>(random_.below(kCommon));
    const std::uint64_t n = 1 + random_.below(16);
    for (std::uint64_t i = 0; i < n && !is_stopped(); ++i)
      if (!take(c, soon(random_.below(4) == 0 ? 3000 : 1))) return;
  }

  void poll_one() {
    doing(Doing::kPolling);
    ReceiverEnd& rx = stage_.ends[kEventfd]->rx;
    const Status armed = random_.below(4) == 0 ? rx.arm() : Status::kOk;
    // Contended: a living sender is inside its lock, and got no processor for a whole slice.
    if (armed != Status::kOk && armed != Status::kContended) bad(__LINE__, armed);
    Wait wait;
    (void)rx.poll_slice(soon(200), wait);
    rx.finish_wait(wait);
    (void)stage_.ends[random_.below(kCommon)]->rx.pending();
  }

  // ---- memory ----

  void keep(std::uint64_t offset, std::uint64_t length, std::uint64_t seed) {
    auto kept = std::make_unique<Kept>();
    kept->length = length;
    kept->seed = seed;
    kept->view.block = offset;
    s().add_view(kept->view);
    kept_.push_back(std::move(kept));
    if (kept_.size() > 24) drop_one();
  }
  void allocate_one() {
    doing(Doing::kAllocating);
    std::uint64_t offset = 0;
    const std::uint64_t length = some_length();
    if (!allocate(length, offset)) return;
    const std::uint64_t seed = random_.next();
    fill(s().payload(offset), length, seed);
    keep(offset, length, seed);
  }
  void drop_one() {
    if (kept_.empty()) return;
    doing(Doing::kDropping);
    const std::size_t i = random_.below(kept_.size());
    const std::unique_ptr<Kept> kept = std::move(kept_[i]);
    kept_[i] = std::move(kept_.back());
    kept_.pop_back();
    if (!is_whole(s().payload(kept->view.block), kept->length, kept->seed))
      bad(__LINE__, Status::kCorrupted);
    s().remove_view(kept->view);
    if (kept->view.pinned) return;
    if (const Status status = drop_block(s(), kept->view.block); status != Status::kOk)
      bad(__LINE__, status);
  }
  void tidy() {
    doing(Doing::kReaping);
    if (random_.below(2) == 0) {
      reap_all(s());
    } else {
      ThreadHeap::of(s()).trim();
    }
  }

  // ---- private channels ----

  ChannelOptions private_options() {
    ChannelOptions o;
    o.shared = random_.below(4) == 0;
    const std::uint64_t limits[] = {0, 1, 4};
    o.max_items = limits[random_.below(3)];
    return o;
  }
  bool make_channel(std::uint32_t& id) {
    Failure why;
    doing(Doing::kMakingChannel);
    const Status status = create_channel(s(), private_options(), id, why);
    if (status == Status::kOk) return true;
    return status == Status::kExhausted ? false : bad(__LINE__, status);
  }

  void play_sender(SenderEnd& tx, std::uint32_t maker, std::uint32_t channel) {
    doing(Doing::kPrivateSending);
    book_->private_begun = book_->private_done = 0;
    book_->private_channel = channel;
    book_->private_maker = maker + 1;
    const auto n = static_cast<std::uint32_t>(random_.below(40));
    for (std::uint32_t i = 1; i <= n && !is_stopped(); ++i) {
      book_->private_begun = i;
      Head head{};
      head.actor = maker;
      head.channel = channel;
      head.number = i;
      const auto blocks = static_cast<std::uint32_t>(random_.below(4) == 0);
      const Status status = send(tx, head, blocks, random_.below(5) == 0 ? 1800 : 0, soon(3000));
      if (status != Status::kOk) {
        if (status != Status::kBroken && status != Status::kFull && status != Status::kExhausted)
          bad(__LINE__, status);
        break;
      }
      book_->private_done = i;
    }
    book_->write({EntryKind::kPrivateSent, false, maker, channel, book_->private_done});
    book_->private_maker = 0;
    tx.close();
  }

  void play_receiver(ReceiverEnd& rx, std::uint32_t maker, std::uint32_t channel) {
    doing(Doing::kPrivateReceiving);
    std::uint32_t n = 0;
    bool torn = false;
    const std::int64_t until = soon(6000);
    Status status = Status::kSlice;
    while (!is_stopped()) {
      Incoming in;
      Wait wait;
      while ((status = rx.receive_slice(in, until, wait)) == Status::kSlice && !is_stopped()) {
      }
      rx.finish_wait(wait);
      if (status != Status::kOk) break;
      Head head{};
      if (!open(in, head) || head.actor != maker || head.channel != channel || head.number != n + 1)
        torn = true;
      n = head.number;
      keep_or_free(in, head);
    }
    if (status == Status::kEnded || status == Status::kBroken) {
      book_->write({EntryKind::kPrivateEnd, torn, maker, channel, n});
    } else if (status != Status::kEmpty && status != Status::kSlice && status != Status::kOk) {
      bad(__LINE__, status);
    }
    rx.close();
  }

  void send_letter() {
    std::uint32_t id = 0;
    if (!book_->has_space() || !make_channel(id)) return;
    const std::uint32_t channel = made_++ & 0xFFFF;
    SenderEnd tx(s(), id);
    ReceiverEnd rx(s(), id);
    const End end = random_.below(2) == 0 ? End::kSender : End::kReceiver;
    if (const Status status = hold_in_transit(s(), id, end); status != Status::kOk)
      bad(__LINE__, status);
    end == End::kSender ? tx.close() : rx.close();
    Head letter{};
    letter.id = id;
    letter.transit = s().token();
    letter.end = static_cast<std::uint32_t>(end);
    letter.maker = me_;
    letter.made = channel;
    if (send_common(kMail, letter, soon(100))) {
      end == End::kSender ? play_receiver(rx, me_, channel) : play_sender(tx, me_, channel);
    } else {
      drop_endpoint_hold(s(), id, end, HoldKind::kTransit, s().token());
      end == End::kSender ? rx.close() : tx.close();
    }
  }

  void read_letter(const Head& letter) {
    doing(Doing::kMakingChannel);
    const auto end = static_cast<End>(letter.end);
    const Status status = open_channel(s(), letter.id, end, letter.transit);
    if (status == Status::kNotFound) return;  // its maker is gone, and the channel with it
    if (status != Status::kOk) {
      bad(__LINE__, status);
      return;
    }
    if (end == End::kSender) {
      SenderEnd tx(s(), letter.id);
      play_sender(tx, letter.maker, letter.made);
    } else {
      ReceiverEnd rx(s(), letter.id);
      play_receiver(rx, letter.maker, letter.made);
    }
  }

  void make_and_drop() {
    std::uint32_t id = 0;
    if (!make_channel(id)) return;
    SenderEnd tx(s(), id);
    ReceiverEnd rx(s(), id);
    Head head{};
    head.actor = me_;
    for (std::uint64_t n = random_.below(4); n > 0; --n)
      if (send(tx, head, static_cast<std::uint32_t>(random_.below(3)), 0, 0) != Status::kOk) break;
    tx.close();
    rx.close();
  }

  // ---- processes ----

  /// Nonblocking with WNOHANG; true if it is gone.
  bool wait_for(pid_t pid, int flags) {
    int status = 0;
    const pid_t got = ::waitpid(pid, &status, flags);
    if (got == 0) return false;
    if (got == pid && !(WIFEXITED(status) && WEXITSTATUS(status) == 0) &&
        !(WIFSIGNALED(status) && (WTERMSIG(status) == SIGALRM || WTERMSIG(status) == SIGKILL)))
      bad(__LINE__, static_cast<Status>(status));
    return true;
  }

  void fork_one() {
    doing(Doing::kForking);
    std::erase_if(children_, [this](pid_t pid) { return wait_for(pid, WNOHANG); });
    if (depth_ > 0 || children_.size() >= 2) return;
    // The child may be the other side of a channel that both have.
    std::uint32_t id = 0;
    const bool talks = random_.below(2) == 0 && book_->has_space() && make_channel(id);
    std::optional<SenderEnd> tx;
    std::optional<ReceiverEnd> rx;
    std::uint32_t channel = 0;
    if (talks) {
      channel = made_++ & 0xFFFF;
      tx.emplace(s(), id), rx.emplace(s(), id);
    }
    const bool child_sends = random_.below(2) == 0;
    const std::uint32_t maker = me_;
    const pid_t parent = ::getpid();
    const std::uint64_t seed = random_.next();
    const pid_t pid = ::fork();
    if (pid != 0) {
      if (pid > 0) children_.push_back(pid);
      if (!talks) return;
      child_sends ? tx->close() : rx->close();
      child_sends ? play_receiver(*rx, maker, channel) : play_sender(*tx, maker, channel);
      return;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(0);
    children_.clear();
    ++depth_;
    Book* own = stage_.board.take();
    if (own == nullptr) ::_exit(0);
    book_ = own;
    made_ = 0;
    be(seed);
    if (random_.below(2) == 0) {  // it dies by itself
      itimerval timer{};
      timer.it_value.tv_usec = static_cast<suseconds_t>(1 + random_.below(1500));
      ::setitimer(ITIMER_REAL, &timer, nullptr);
    }
    if (talks) {
      child_sends ? rx->close() : tx->close();
      child_sends ? play_sender(*tx, maker, channel) : play_receiver(*rx, maker, channel);
    }
    work(random_.below(30));
    finish();
    go();
  }

  /// Leaves the segment, and attaches to it as a stranger would.
  void come_back() {
    doing(Doing::kAttaching);
    stage_.close();
    stage_.segment.reset();
    Failure why;
    stage_.segment = Segment::attach(stage_.spare_fd, why);
    if (!stage_.segment) {
      bad(__LINE__, why.status);
      return;
    }
    for (std::uint32_t c = 0; c < kCommon; ++c) {
      for (const End end : {End::kSender, End::kReceiver})
        if (const Status status = open_channel(s(), stage_.ids[c], end, 0); status != Status::kOk) {
          bad(__LINE__, status);
          return;
        }
      stage_.ends[c] = std::make_unique<Ends>(s(), stage_.ids[c], c == kEventfd ? stage_.bell : -1);
    }
  }

  /// In order, or as if the machine had lost power.
  [[noreturn]] void go() {
    doing(Doing::kLeaving);
    if (stage_.segment && random_.below(2) == 0) leave(s(), s().token());
    ::_exit(book_->bad == 0 ? 0 : 3);
  }

  Stage& stage_;
  Book* book_;
  std::uint32_t me_ = 0;
  check::Random random_{0};
  std::uint64_t weights_[9] = {};
  std::vector<std::unique_ptr<Kept>> kept_;
  std::vector<pid_t> children_;
  std::uint32_t made_ = 0;
  int depth_ = 0;
};

}  // namespace stress
