// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/run_heap.hpp"

#include <algorithm>

#include "ipcbuf/platform.hpp"

namespace ipcbuf {

using A = Atomics;

struct HeapLock {
  explicit HeapLock(Segment& segment) noexcept : s(segment) {
    const bool held = s.header().heap_lock.acquire(
        s.token(), platform::kForever, [this](Token t) { return s.is_dead(t); },
        [this] {
          A::fetch_add(s.header().takeovers, 1);
          if (!RunHeap(s).rebuild()) (void)s.poison(__LINE__);
        });
    (void)held;  // without a deadline it always is
  }
  ~HeapLock() { s.header().heap_lock.release(); }
  HeapLock(const HeapLock&) = delete;
  HeapLock& operator=(const HeapLock&) = delete;
  Segment& s;
};

namespace {

constexpr std::uint32_t pages_of(std::uint64_t bytes) noexcept {
  return static_cast<std::uint32_t>((bytes + kPageSize - 1) >> kPageShift);
}

constexpr std::uint32_t kFirstStep = pages_of(2U << 20);
constexpr std::uint32_t kLargestStep = pages_of(64U << 20);

std::uint64_t word(RunState state, std::uint32_t length, Token token = 0) noexcept {
  return Run{state, length, token}.pack();
}

}  // namespace

// ---- the index: a binary heap of first pages, longest run at 0 ----

std::uint32_t RunHeap::length(std::uint32_t page) noexcept {
  // relaxed: under heap_lock
  return Run::unpack(A::load_relaxed(s_.run(page))).length;
}

// The index lies in shared memory: what cannot be poisons, and reads as something harmless.
std::uint32_t RunHeap::index_size() noexcept {
  const std::uint32_t n = A::load_relaxed(s_.header().index_size);  // relaxed: under heap_lock
  if (n <= s_.committed_pages()) return n;
  (void)s_.poison(__LINE__);
  return 0;
}

std::uint32_t RunHeap::index_at(std::uint32_t at) noexcept {
  const std::uint32_t page = s_.run_index()[at];
  if (page < s_.committed_pages()) return page;
  (void)s_.poison(__LINE__);
  return 0;
}

void RunHeap::index_place(std::uint32_t at, std::uint32_t page) noexcept {
  s_.run_index()[at] = page;
  s_.page(page).index_pos = at;
}

void RunHeap::sift_up(std::uint32_t at) noexcept {
  const std::uint32_t page = index_at(at);
  while (at > 0 && length(index_at((at - 1) / 2)) < length(page)) {
    index_place(at, index_at((at - 1) / 2));
    at = (at - 1) / 2;
  }
  index_place(at, page);
}

void RunHeap::sift_down(std::uint32_t at) noexcept {
  const std::uint32_t size = index_size();
  const std::uint32_t page = index_at(at);
  for (;;) {
    std::uint32_t child = 2 * at + 1;
    if (child >= size) break;
    if (child + 1 < size && length(index_at(child + 1)) > length(index_at(child))) ++child;
    if (length(index_at(child)) <= length(page)) break;
    index_place(at, index_at(child));
    at = child;
  }
  index_place(at, page);
}

void RunHeap::index_push(std::uint32_t page) noexcept {
  const std::uint32_t at = index_size();
  if (at >= s_.constants().max_pages) {
    (void)s_.poison(__LINE__);
    return;
  }
  index_place(at, page);
  A::store_relaxed(s_.header().index_size, at + 1);  // relaxed: under heap_lock
  sift_up(at);
}

void RunHeap::index_remove(std::uint32_t page) noexcept {
  const std::uint32_t size = index_size();
  const std::uint32_t at = s_.page(page).index_pos;
  if (at >= size || index_at(at) != page) {
    (void)s_.poison(__LINE__);
    return;
  }
  const std::uint32_t last = size - 1;
  A::store_relaxed(s_.header().index_size, last);  // relaxed: under heap_lock
  if (at == last) return;
  const std::uint32_t moved = index_at(last);
  index_place(at, moved);
  sift_up(at);
  if (const std::uint32_t now = s_.page(moved).index_pos; now < last) sift_down(now);
}

/// From the longest run down the heap, always to the shorter child that still fits: a close
/// fit in O(log n) without a second index. Returns the index size if nothing fits.
std::uint32_t RunHeap::find_fit(std::uint32_t pages) noexcept {
  const std::uint32_t size = index_size();
  if (size == 0 || length(index_at(0)) < pages) return size;
  std::uint32_t at = 0;
  for (;;) {
    const std::uint32_t left = 2 * at + 1;
    const std::uint32_t right = left + 1;
    const bool left_fits = left < size && length(index_at(left)) >= pages;
    const bool right_fits = right < size && length(index_at(right)) >= pages;
    if (!left_fits && !right_fits) return at;
    if (left_fits && right_fits) {
      at = length(index_at(left)) <= length(index_at(right)) ? left : right;
    } else {
      at = left_fits ? left : right;
    }
  }
}

// ---- runs ----

void RunHeap::set_footer(std::uint32_t first, std::uint32_t length) noexcept {
  A::store_relaxed(s_.page(first + length - 1).head_back, length - 1);  // relaxed: under heap_lock
}

bool RunHeap::free_run_before(std::uint32_t page, std::uint32_t& head) noexcept {
  if (page == 0) return false;
  const std::uint32_t back = A::load_relaxed(s_.page(page - 1).head_back);
  if (back >= page) return false;
  const Run run = Run::unpack(A::load_relaxed(s_.run(page - 1 - back)));
  if (run.state != RunState::kFree || run.length != back + 1) return false;
  head = page - 1 - back;
  return true;
}

Status RunHeap::allocate(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept {
  why.requested = static_cast<std::uint64_t>(pages) << kPageShift;
  if (pages == 0 || pages > s_.constants().max_pages) {
    why.reason = "max_size";
    return why.status = Status::kTooLarge;
  }
  const HeapLock lock(s_);
  if (s_.is_poisoned()) return why.status = s_.fault();
  std::uint32_t at = find_fit(pages);
  if (at == index_size()) {
    if (grow(pages, why) != Status::kOk) return why.status;
    at = find_fit(pages);
  }
  first = index_at(at);
  const Run found = Run::unpack(A::load_relaxed(s_.run(first)));
  const std::uint32_t whole = found.length;
  if (s_.is_poisoned() || found.state != RunState::kFree || whole < pages ||
      whole > s_.committed_pages() - first)
    return why.status = s_.poison(__LINE__);
  if (whole == pages) {
    A::store_release(s_.run(first), word(RunState::kReserved, pages, s_.token()));  // R2
    index_remove(first);
  } else {
    const std::uint32_t rest = first + pages;
    A::store_release(s_.run(rest), word(RunState::kFree, whole - pages));
    A::store_release(s_.run(first), word(RunState::kReserved, pages, s_.token()));  // R2
    set_footer(first, pages);
    set_footer(rest, whole - pages);
    // `rest` takes the place of `first` in the index and can only sink.
    index_place(at, rest);
    sift_down(at);
  }
  auto& free_pages = s_.header().free_pages;
  A::store_relaxed(free_pages, A::load_relaxed(free_pages) - pages);  // relaxed: under heap_lock
  return Status::kOk;
}

Status RunHeap::free(std::uint32_t first) noexcept {
  const HeapLock lock(s_);
  const std::uint32_t end = s_.committed_pages();
  const Run run = Run::unpack(A::load_relaxed(s_.run(first)));
  if (first >= end || run.length == 0 || run.length > end - first || run.state == RunState::kFree)
    return s_.poison(__LINE__);
  std::uint32_t head = first;
  std::uint32_t total = run.length;
  const std::uint32_t behind = first + run.length;
  bool take_behind = false;
  if (behind < end) {
    const Run next = Run::unpack(A::load_relaxed(s_.run(behind)));
    if (next.state == RunState::kFree) {
      if (next.length == 0 || next.length > end - behind) return s_.poison(__LINE__);
      take_behind = true;
      total += next.length;
    }
  }
  const bool take_before = free_run_before(first, head);
  if (take_before) total += length(head);
  // The index compares lengths, so both neighbours leave it while theirs are still true.
  if (take_behind) index_remove(behind);
  if (take_before) index_remove(head);
  A::store_release(s_.run(head), word(RunState::kFree, total));  // R2: freed and merged
  set_footer(head, total);
  index_push(head);
  auto& free_pages = s_.header().free_pages;
  A::store_relaxed(free_pages, A::load_relaxed(free_pages) + run.length);
  return Status::kOk;
}

Status RunHeap::grow(std::uint32_t pages, Failure& why) noexcept {
  const Constants& c = s_.constants();
  const std::uint32_t old = s_.committed_pages();
  std::uint32_t tail = old;
  const std::uint32_t tail_length = free_run_before(old, tail) ? length(tail) : 0;
  if (tail_length >= pages) return why.status = s_.poison(__LINE__);
  const std::uint32_t need = pages - tail_length;  // find_fit failed: pages > tail_length
  const std::uint32_t room = c.max_pages - old;
  why.committed = static_cast<std::uint64_t>(old) << kPageShift;
  why.max_size = c.max_size;
  why.free_bytes = static_cast<std::uint64_t>(A::load_relaxed(s_.header().free_pages))
                   << kPageShift;
  const std::uint32_t runs = index_size();
  why.largest_run = runs == 0 ? 0 : static_cast<std::uint64_t>(length(index_at(0))) << kPageShift;
  if (need > room) {
    why.reason = "max_size";
    return why.status = Status::kExhausted;
  }
  std::uint32_t step = std::min({std::max(kFirstStep, old / 4), kLargestStep, room});
  step = std::max(step, need);

  // A cgroup kills instead of refusing, so ask before the kernel has to.
  const platform::MemoryLimits limits = platform::memory_limits();
  const std::uint64_t keep = limits.physical / 20;
  const std::uint64_t available = limits.physical == 0      ? UINT64_MAX
                                  : limits.available > keep ? limits.available - keep
                                                            : 0;
  const std::uint64_t headroom = std::min(available, limits.cgroup_headroom);
  const auto bytes = [](std::uint32_t n) { return static_cast<std::uint64_t>(n) << kPageShift; };
  if (bytes(step) > headroom) step = need;
  if (bytes(step) > headroom) {
    why.reason = available <= limits.cgroup_headroom ? "MemAvailable" : "cgroup";
    why.headroom = headroom;
    return why.status = Status::kExhausted;
  }

  const auto reserve = [&](std::uint32_t n) {
    const std::uint64_t from = old;
    int r = s_.reserve(c.runs + from * 8, std::uint64_t{n} * 8);
    if (r == 0) r = s_.reserve(c.pages + from * sizeof(PageInfo), n * sizeof(PageInfo));
    if (r == 0) r = s_.reserve(c.index + from * 4, std::uint64_t{n} * 4);
    if (r == 0) r = s_.reserve(s_.page_offset(old), bytes(n));
    return r;
  };
  int r = reserve(step);
  if (r != 0 && step != need) r = reserve(step = need);
  if (r != 0) {
    why.reason = "fallocate";
    why.sys_errno = -r;
    return why.status = s_.is_lost() ? Status::kLost : Status::kExhausted;
  }
  A::store_release(s_.run(old), word(RunState::kFree, step));
  set_footer(old, step);
  A::store_release(s_.header().committed_pages, old + step);  // R2: the heap is longer now
  if (tail_length != 0) {
    index_remove(tail);
    A::store_release(s_.run(tail), word(RunState::kFree, tail_length + step));  // R2
    set_footer(tail, tail_length + step);
    index_push(tail);
  } else {
    index_push(old);
  }
  auto& free_pages = s_.header().free_pages;
  A::store_relaxed(free_pages, A::load_relaxed(free_pages) + step);
  A::fetch_add(s_.header().growths, 1);
  return Status::kOk;
}

bool RunHeap::rebuild() noexcept {
  const std::uint32_t end = s_.committed_pages();
  A::store_relaxed(s_.header().index_size, 0);
  std::uint32_t free_pages = 0;
  for (std::uint32_t p = 0; p < end;) {
    Run run = Run::unpack(A::load_relaxed(s_.run(p)));
    if (run.state == RunState::kNone || run.state > RunState::kSlab || run.length == 0 ||
        run.length > end - p)
      return false;
    if (run.state == RunState::kFree) {
      std::uint32_t total = run.length;
      while (p + total < end) {
        const Run next = Run::unpack(A::load_relaxed(s_.run(p + total)));
        if (next.state != RunState::kFree) break;
        if (next.length == 0 || next.length > end - p - total) return false;
        total += next.length;
      }
      if (total != run.length) {
        run.length = total;
        A::store_release(s_.run(p), word(RunState::kFree, total));  // R2
      }
      set_footer(p, run.length);
      index_push(p);
      free_pages += run.length;
    } else {
      set_footer(p, run.length);
    }
    p += run.length;
  }
  A::store_relaxed(s_.header().free_pages, free_pages);
  return true;
}

void RunHeap::recover_lock() noexcept {
  const Token owner = s_.header().heap_lock.owner();
  if (owner != 0 && s_.is_dead(owner)) const HeapLock lock(s_);
}

std::uint32_t RunHeap::list(RunState state, std::uint32_t* out, std::uint32_t capacity) noexcept {
  const HeapLock lock(s_);
  const std::uint32_t end = s_.committed_pages();
  std::uint32_t n = 0;
  for (std::uint32_t p = 0; p < end && n < capacity;) {
    const Run run = Run::unpack(A::load_relaxed(s_.run(p)));
    if (run.length == 0 || run.length > end - p) {
      (void)s_.poison(__LINE__);
      break;
    }
    if (run.state == state) out[n++] = p;
    p += run.length;
  }
  return n;
}

void RunHeap::measure(std::uint64_t& free_bytes, std::uint64_t& largest) noexcept {
  const HeapLock lock(s_);
  free_bytes = static_cast<std::uint64_t>(A::load_relaxed(s_.header().free_pages)) << kPageShift;
  largest = index_size() == 0 ? 0 : static_cast<std::uint64_t>(length(index_at(0))) << kPageShift;
}

}  // namespace ipcbuf
