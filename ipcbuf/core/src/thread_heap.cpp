// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/thread_heap.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>

#include "ipcbuf/block.hpp"
#include "ipcbuf/fork.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::array<std::uint32_t, 15> kSmall = {256,  384,  512,  768,   1024,  1536,  2048, 3072,
                                                  4096, 6144, 8192, 12288, 16384, 24576, 32768};
constexpr std::uint32_t kSmallSlab = 128U << 10;  // bytes, for blocks above 1 KiB
constexpr std::size_t kLookFirst = 8;             // slabs looked at before a new one is made:
constexpr std::size_t kLook = 32;                 // these first, then so many of the rest
constexpr std::uint64_t kKeep = 64ULL << 20;      // bytes of slabs a thread keeps before it trims
constexpr std::uint64_t kIdle = 16ULL << 20;      // bytes of unused slabs it keeps anyway
constexpr std::int64_t kSettle = 1'000'000'000;   // ns
constexpr std::int64_t kSettleOn = 100'000'000;   // ns, if not everything was looked at
constexpr std::uint32_t kSettleLook = 1 << 14;    // headers read at once: about a millisecond

constexpr std::size_t small_class(std::uint64_t total) noexcept {
  if (total <= kSmall[0]) return 0;
  // Two classes per doubling: 2^k, and 1.5 * 2^k.
  const auto log = static_cast<std::uint32_t>(std::bit_width(total - 1)) - 1;
  const std::size_t below = (log - 8) * 2;  // 256 = class 0
  return total <= 3ULL << (log - 1) ? below + 1 : below + 2;
}
static_assert(small_class(257) == 1 && small_class(385) == 2 && small_class(32768) == 14);

}  // namespace

ThreadHeap::ThreadHeap(Segment& segment) noexcept
    : segment_(&segment),
      serial_(segment.serial()),
      token_(segment.token()),
      trim_at_(std::min(kKeep, segment.constants().max_size / 8)) {
  for (const std::uint32_t size : kSmall) {
    SizeClass c;
    c.units = size / kCacheLine;
    c.count = std::min(64U, kSmallSlab / size);
    c.pages = (c.count * size + kPageSize - 1) / kPageSize;
    classes_.push_back(std::move(c));
  }
}

ThreadHeap::SizeClass& ThreadHeap::size_class(std::uint64_t total) {
  if (total <= kSmall.back()) return classes_[small_class(total)];
  auto pages = static_cast<std::uint32_t>((total + kPageSize - 1) >> kPageShift);
  // Four significant bits, so that messages of about one size share warm slabs.
  const int width = std::bit_width(pages);
  if (width > 4) {
    const std::uint32_t step = 1U << (width - 4);
    const std::uint32_t rounded = (pages + step - 1) / step * step;
    if (rounded <= segment_->constants().max_pages) pages = rounded;
  }
  for (std::size_t i = kSmall.size(); i < classes_.size(); ++i)
    if (classes_[i].pages == pages) return classes_[i];
  SizeClass c;
  c.pages = pages;
  c.count = 1;
  c.units = pages << (kPageShift - 6);
  classes_.push_back(std::move(c));
  return classes_.back();
}

bool ThreadHeap::is_ours(const Slab& slab) {
  const Run run = Run::unpack(A::load_acquire(segment_->run(slab.head)));
  return run.state == RunState::kSlab && run.token == token_ &&
         A::load_acquire(segment_->page(slab.head).salt) == slab.salt;
}

bool ThreadHeap::take(SizeClass& c, Slab& slab, std::uint64_t length, std::uint64_t& offset) {
  while (slab.free != 0) {
    const auto i = static_cast<std::uint32_t>(std::countr_zero(slab.free));
    slab.free &= slab.free - 1;
    BlockPlace p{};
    p.head = slab.head;
    p.index = i;
    p.units = c.units;
    p.offset = segment_->page_offset(slab.head) + i * p.size();
    p.check = segment_->check_of(p.offset, p.units, slab.salt);
    BlockHeader& header = segment_->block(p.offset);
    // B2: not ours any more if somebody took the whole slab while it was empty.
    if (!change_holder(*segment_, p, kNobody, by_process(token_))) continue;  // K1 acquire
    A::store_relaxed(header.length, length);  // relaxed: published with the message or holder
    A::store_relaxed(header.state, 0);
    A::store_relaxed(header.lease, 0);
    A::store_relaxed(header.ticket, 0);
    A::store_relaxed(header.creator, 0);
    slab.used = true;
    offset = p.offset;
    return true;
  }
  return false;
}

/// Adds what was freed elsewhere to the slab's free blocks: the hinted ones, or all.
void ThreadHeap::collect(const SizeClass& c, Slab& slab, bool every_header) {
  auto& returned = segment_->page(slab.head).returned;
  std::uint64_t bits = A::load_relaxed(returned);  // relaxed: a hint, the header decides
  if (bits != 0) bits = A::exchange(returned, 0);
  if (every_header) bits = c.count == 64 ? ~0ULL : (1ULL << c.count) - 1;
  for (; bits != 0; bits &= bits - 1) {
    const auto i = static_cast<std::uint32_t>(std::countr_zero(bits));
    if (i >= c.count) break;
    const std::uint64_t at =
        segment_->page_offset(slab.head) + std::uint64_t{i} * c.units * kCacheLine;
    const std::uint64_t word = A::load_acquire(segment_->block(at).holder);  // K1 acquire
    if (word == segment_->check_of(at, c.units, slab.salt)) slab.free |= 1ULL << i;
  }
}

/// Makes a slab with a free block the current one. The first slabs are tried first, whatever
/// was used last: so a thread whose blocks come back soon goes on using few of them, and those
/// stay in the processor's cache. Behind them the search goes on where it ended.
bool ThreadHeap::find_returned(SizeClass& c) {
  if (c.slabs.size() >= c.full_scan_at) {
    // Hints of freers that died in between are lost; doubling keeps the full scan cheap.
    c.full_scan_at = c.slabs.size() * 2;
    for (std::size_t i = 0; i < c.slabs.size(); ++i)
      if (is_ours(c.slabs[i])) collect(c, c.slabs[i], true);
  }
  std::size_t at = 0;
  for (std::size_t n = 0; n < kLookFirst + kLook && n < c.slabs.size();) {
    if (n == kLookFirst) at = std::max(c.cursor, kLookFirst);
    if (at >= c.slabs.size()) at = 0;
    Slab& slab = c.slabs[at];
    if (!is_ours(slab)) {
      owned_ -= std::uint64_t{c.pages} << kPageShift;
      slab = c.slabs.back();
      c.slabs.pop_back();
      continue;
    }
    collect(c, slab, false);
    ++n;
    if (n > kLookFirst) c.cursor = at + 1;
    if (slab.free != 0) {
      c.current = at;
      return true;
    }
    ++at;
  }
  return false;
}

/// As `find_returned`, among the blocks known to be free.
bool ThreadHeap::find_free(SizeClass& c) {
  const auto found =
      std::find_if(c.slabs.begin(), c.slabs.end(), [](const Slab& slab) { return slab.free != 0; });
  if (found == c.slabs.end()) return false;
  c.current = static_cast<std::size_t>(found - c.slabs.begin());
  return true;
}

Status ThreadHeap::relieve(std::uint32_t pages, std::uint32_t& first, Failure& why) {
  // Cheapest first: our own empty slabs, the dead, then empty slabs of others.
  RunHeap heap(*segment_);
  trim();
  if (heap.allocate(pages, first, why) == Status::kOk) return Status::kOk;
  if (why.status != Status::kExhausted) return why.status;
  reap_all(*segment_);
  steal_empty_slabs(*segment_);
  return heap.allocate(pages, first, why);
}

Status ThreadHeap::new_slab(SizeClass& c, Failure& why) {
  if (owned_ + (std::uint64_t{c.pages} << kPageShift) > trim_at_) trim();
  std::uint32_t first = 0;
  Status status = RunHeap(*segment_).allocate(c.pages, first, why);
  if (status == Status::kExhausted) status = relieve(c.pages, first, why);
  if (status != Status::kOk) return status;
  Segment& s = *segment_;
  PageInfo& info = s.page(first);
  const std::uint32_t salt = A::load_relaxed(info.salt) + 1;  // relaxed: the run is ours alone
  A::store_release(info.salt, salt);  // K3, to retire_slab: the run was reserved before
  A::store_relaxed(info.block_units, c.units);
  A::store_relaxed(info.block_count, c.count);
  A::store_relaxed(info.slot_set, slot_bit(token_));
  A::store_relaxed(info.returned, 0);
  for (std::uint32_t k = 0; k < c.pages; ++k) A::store_relaxed(s.page(first + k).head_back, k);
  for (std::uint32_t i = 0; i < c.count; ++i) {
    const std::uint64_t at = s.page_offset(first) + std::uint64_t{i} * c.units * kCacheLine;
    BlockHeader& header = s.block(at);
    A::store_relaxed(header.holder, s.check_of(at, c.units, salt));
    // What lay in these pages before must not look like a lease or a ticket: who takes a block may
    // die before it has cleaned its header.
    A::store_relaxed(header.lease, 0);
    A::store_relaxed(header.ticket, 0);
  }
  // The commit: before it the pages are a reserved run, behind it a slab of ours.
  A::store_release(s.run(first), Run{RunState::kSlab, c.pages, token_}.pack());
  owned_ += std::uint64_t{c.pages} << kPageShift;
  c.slabs.push_back({first, salt, c.count == 64 ? ~0ULL : (1ULL << c.count) - 1});
  c.current = c.slabs.size() - 1;
  RunHeap(s).give_back_surplus();
  return Status::kOk;
}

Status ThreadHeap::allocate(std::uint64_t length, std::uint64_t& offset, Failure& why) {
  const Constants& c = segment_->constants();
  if (length > c.max_size || length + sizeof(BlockHeader) > c.max_size) {
    why = {Status::kTooLarge, 0, "max_size"};
    why.requested = length;
    why.max_size = c.max_size;
    return why.status;
  }
  SizeClass& k = size_class(length + sizeof(BlockHeader));
  if (k.count == 1 && platform::monotonic_ns() >= settle_at_) settle();
  for (;;) {
    if (k.current < k.slabs.size() && is_ours(k.slabs[k.current]) &&
        take(k, k.slabs[k.current], length, offset))
      return Status::kOk;
    if (k.count != 1 && platform::monotonic_ns() >= settle_at_) settle();
    if (find_returned(k)) continue;
    why = {};
    if (const Status status = new_slab(k, why); status != Status::kOk) {
      // The search for room has looked at every header of ours: what came back to a slab that
      // `find_returned` did not get to is known now.
      if (status == Status::kExhausted && find_free(k)) continue;
      why.requested = length;
      return status;
    }
  }
}

void ThreadHeap::trim() {
  for (SizeClass& c : classes_) {
    const std::uint64_t all = c.count == 64 ? ~0ULL : (1ULL << c.count) - 1;
    for (std::size_t i = c.slabs.size(); i-- > 0;) {
      Slab& slab = c.slabs[i];
      bool gone = !is_ours(slab);
      if (!gone) {
        collect(c, slab, true);
        gone = slab.free == all && retire_slab(*segment_, slab.head);
      }
      if (!gone) continue;
      owned_ -= std::uint64_t{c.pages} << kPageShift;
      slab = c.slabs.back();
      c.slabs.pop_back();
    }
    c.current = 0;
  }
  // Twice what is in use, so that the cost of trimming is shared by many new slabs.
  trim_at_ = std::max(std::min(kKeep, segment_->constants().max_size / 8), owned_ * 2);
}

void ThreadHeap::settle() {
  std::uint32_t looked = 0;
  for (; settling_.at_class < classes_.size(); ++settling_.at_class, settling_.seen = 0) {
    if (!settle(classes_[settling_.at_class], looked)) break;
  }
  const bool is_over = settling_.at_class == classes_.size();
  if (is_over) settling_ = {};
  settle_at_ = platform::monotonic_ns() + (is_over ? kSettle : kSettleOn);
  RunHeap(*segment_).give_back_surplus();
}

/// False: there is more to look at in this class. From the last slab to the first, so that what
/// takes the place of one that goes has been looked at.
bool ThreadHeap::settle(SizeClass& c, std::uint32_t& looked) {
  const std::uint64_t bytes = std::uint64_t{c.pages} << kPageShift;
  const std::uint64_t all = c.count == 64 ? ~0ULL : (1ULL << c.count) - 1;
  for (; settling_.seen < c.slabs.size(); ++settling_.seen) {
    if (looked >= kSettleLook) return false;
    Slab& slab = c.slabs[c.slabs.size() - 1 - settling_.seen];
    if (slab.used) {
      slab.used = false;
      ++looked;
      continue;
    }
    bool gone = !is_ours(slab);
    if (!gone) {
      collect(c, slab, true);
      looked += c.count;
      if (slab.free != all) continue;  // somebody has some of it
      settling_.idle += bytes;
      gone = settling_.idle > kIdle && retire_slab(*segment_, slab.head);
    }
    if (!gone) continue;
    owned_ -= bytes;
    slab = c.slabs.back();
    c.slabs.pop_back();
    c.current = 0;
    --settling_.seen;  // counted from the end, which has moved
  }
  return true;
}

void ThreadHeap::abandon() {
  for (SizeClass& c : classes_) {
    for (const Slab& slab : c.slabs)
      if (is_ours(slab)) orphan_slab(*segment_, slab.head);
    c.slabs.clear();
  }
  owned_ = 0;
}

// ---- one heap per thread and segment ----

namespace {

struct ThreadHeaps {
  std::vector<std::unique_ptr<ThreadHeap>> heaps;

  ThreadHeaps() = default;
  ThreadHeaps(const ThreadHeaps&) = delete;
  ThreadHeaps& operator=(const ThreadHeaps&) = delete;
  ~ThreadHeaps() {
    for (const auto& heap : heaps) {
      const auto segment =
          ForkHandlers::find([&](const Segment& s) { return s.serial() == heap->serial(); });
      if (segment && segment->token() == heap->token()) heap->abandon();
    }
  }
};

thread_local ThreadHeaps tls_heaps;
thread_local ThreadHeap* tls_last = nullptr;

}  // namespace

ThreadHeap& ThreadHeap::of(Segment& segment) {
  const Token token = segment.token();
  if (tls_last != nullptr && tls_last->serial() == segment.serial() && tls_last->token() == token)
      [[likely]]
    return *tls_last;
  for (auto it = tls_heaps.heaps.begin(); it != tls_heaps.heaps.end(); ++it) {
    if ((*it)->serial() != segment.serial()) continue;
    if ((*it)->token() == token) return *(tls_last = it->get());
    tls_heaps.heaps.erase(it);  // our parent's slabs; they stay the parent's
    break;
  }
  // Those of segments that were closed since: a thread may open and close many.
  std::erase_if(tls_heaps.heaps, [](const auto& heap) {
    return !ForkHandlers::find([&](const Segment& s) { return s.serial() == heap->serial(); });
  });
  tls_heaps.heaps.push_back(std::make_unique<ThreadHeap>(segment));
  return *(tls_last = tls_heaps.heaps.back().get());
}

}  // namespace ipcbuf
