// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/run_heap.hpp"

#include <algorithm>
#include <cerrno>

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

// ---- the list of returned runs ----

void RunHeap::list_push(std::uint32_t page) noexcept {
  auto& first = s_.header().returned_first;
  const std::uint32_t next = A::load_relaxed(first);  // relaxed: under heap_lock
  if (next > s_.committed_pages()) {
    (void)s_.poison(__LINE__);
    return;
  }
  s_.page(page).next_returned = next;
  s_.page(page).index_pos = 0;
  if (next != 0) s_.page(next - 1).index_pos = page + 1;
  A::store_relaxed(first, page + 1);
}

void RunHeap::list_remove(std::uint32_t page) noexcept {
  const std::uint32_t before = s_.page(page).index_pos;
  const std::uint32_t next = s_.page(page).next_returned;
  if (before > s_.committed_pages() || next > s_.committed_pages()) {
    (void)s_.poison(__LINE__);
    return;
  }
  if (before == 0) {
    A::store_relaxed(s_.header().returned_first, next);
  } else {
    s_.page(before - 1).next_returned = next;
  }
  if (next != 0) s_.page(next - 1).index_pos = before;
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

/// The run that ends in front of `page`, if it is in that state.
bool RunHeap::run_before(std::uint32_t page, RunState state, std::uint32_t& head) noexcept {
  if (page == 0) return false;
  const std::uint32_t back = A::load_relaxed(s_.page(page - 1).head_back);
  if (back >= page) return false;
  const Run run = Run::unpack(A::load_relaxed(s_.run(page - 1 - back)));
  if (run.state != state || run.length != back + 1) return false;
  head = page - 1 - back;
  return true;
}

void RunHeap::add_pages(Atomic<std::uint32_t>& counter, std::uint32_t pages) noexcept {
  A::store_relaxed(counter, A::load_relaxed(counter) + pages);  // relaxed: under heap_lock
}

/// Makes a run that is free or returned findable.
void RunHeap::enlist(std::uint32_t page, RunState state) noexcept {
  set_footer(page, length(page));
  if (state == RunState::kFree) {
    index_push(page);
    add_pages(s_.header().free_pages, length(page));
  } else {
    list_push(page);
    add_pages(s_.header().returned_pages, length(page));
  }
}

/// The index compares lengths, so a run leaves it while its length is still true.
void RunHeap::delist(std::uint32_t page, RunState state) noexcept {
  if (state == RunState::kFree) {
    index_remove(page);
    add_pages(s_.header().free_pages, 0 - length(page));
  } else {
    list_remove(page);
    add_pages(s_.header().returned_pages, 0 - length(page));
  }
}

// ---- allocation ----

Status RunHeap::allocate(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept {
  why.requested = static_cast<std::uint64_t>(pages) << kPageShift;
  if (pages == 0 || pages > s_.constants().max_pages) {
    why.reason = "max_size";
    return why.status = Status::kTooLarge;
  }
  if (const Status status = take(pages, first, why); status != Status::kOk)
    return why.status = status;
  if (Run::unpack(A::load_relaxed(s_.run(first))).state == RunState::kReserved) return Status::kOk;
  // Its memory was given back. Reserving it takes long, so nobody waits for it at the lock.
  if (const Status status = back(first, pages, why); status != Status::kOk) {
    (void)settle(first, RunState::kReturned);
    return why.status = status;
  }
  A::store_release(s_.run(first), word(RunState::kReserved, pages, s_.token()));  // R2, R4
  return Status::kOk;
}

/// The four ways to a run, cheapest first; the run is kReserved, or kUnbacked if not in memory.
Status RunHeap::take(std::uint32_t pages, std::uint32_t& first, Failure& why) noexcept {
  const HeapLock lock(s_);
  Header& h = s_.header();
  for (bool grown = false;;) {
    if (s_.is_poisoned()) return s_.fault();
    const std::uint32_t at = find_fit(pages);
    if (at != index_size()) {
      first = index_at(at);
      const Run run = Run::unpack(A::load_relaxed(s_.run(first)));
      if (s_.is_poisoned() || run.state != RunState::kFree || run.length < pages ||
          run.length > s_.committed_pages() - first)
        return s_.poison(__LINE__);
      take_free(at, pages);
      return Status::kOk;
    }
    if (A::load_relaxed(h.returned_pages) != 0 &&
        (take_returned(pages, first) || (join_neighbours(pages) && take_returned(pages, first))))
      return Status::kOk;
    if (grown) return s_.poison(__LINE__);
    if (const Status status = grow(pages, why); status != Status::kOk) return status;
    grown = true;
  }
}

void RunHeap::take_free(std::uint32_t at, std::uint32_t pages) noexcept {
  const std::uint32_t first = index_at(at);
  const std::uint32_t whole = length(first);
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
  Header& h = s_.header();
  add_pages(h.free_pages, 0 - pages);
  const std::uint32_t left = A::load_relaxed(h.free_pages);
  if (left < A::load_relaxed(h.least_free)) A::store_relaxed(h.least_free, left);
}

/// Takes the front of the shortest returned run that fits. There are few: each is 2 MiB or more,
/// or what is left of one.
bool RunHeap::take_returned(std::uint32_t pages, std::uint32_t& first) noexcept {
  const std::uint32_t end = s_.committed_pages();
  std::uint32_t best = 0;  // + 1
  std::uint32_t steps = 0;
  for (std::uint32_t at = A::load_relaxed(s_.header().returned_first); at != 0;
       at = s_.page(at - 1).next_returned) {
    const Run run = at > end ? Run{} : Run::unpack(A::load_relaxed(s_.run(at - 1)));
    if (run.state != RunState::kReturned || run.length > end - (at - 1) || ++steps > end) {
      (void)s_.poison(__LINE__);
      return false;
    }
    if (length(at - 1) >= pages && (best == 0 || length(at - 1) < length(best - 1))) best = at;
  }
  if (best == 0) return false;
  first = best - 1;
  const std::uint32_t whole = length(first);
  delist(first, RunState::kReturned);
  if (whole != pages)
    A::store_release(s_.run(first + pages), word(RunState::kReturned, whole - pages));
  A::store_release(s_.run(first), word(RunState::kUnbacked, pages, s_.token()));  // R2
  set_footer(first, pages);
  if (whole != pages) enlist(first + pages, RunState::kReturned);
  return true;
}

/// Makes neighbours, free and returned, one returned run if together they fit.
bool RunHeap::join_neighbours(std::uint32_t pages) noexcept {
  const std::uint32_t end = s_.committed_pages();
  std::uint32_t head = 0;
  std::uint32_t total = 0;  // of the neighbours up to here, from `head`
  for (std::uint32_t p = 0; p < end && total < pages;) {
    const Run run = Run::unpack(A::load_relaxed(s_.run(p)));
    if (run.length == 0 || run.length > end - p) {
      (void)s_.poison(__LINE__);
      return false;
    }
    const bool loose = run.state == RunState::kFree || run.state == RunState::kReturned;
    if (total == 0) head = p;
    total = loose ? total + run.length : 0;
    p += run.length;
  }
  if (total < pages) return false;
  if (head + total < end) {  // R3: no other returned run behind it
    const Run behind = Run::unpack(A::load_relaxed(s_.run(head + total)));
    if (behind.state == RunState::kReturned && behind.length <= end - head - total)
      total += behind.length;
  }
  for (std::uint32_t p = head; p < head + total;) {
    const Run run = Run::unpack(A::load_relaxed(s_.run(p)));
    delist(p, run.state);
    p += run.length;
  }
  A::store_release(s_.run(head), word(RunState::kReturned, total));  // R2, R4
  enlist(head, RunState::kReturned);
  return true;
}

// ---- free ----

Status RunHeap::free(std::uint32_t first) noexcept {
  const RunState was = Run::unpack(A::load_acquire(s_.run(first))).state;
  return settle(first, was == RunState::kUnbacked ? RunState::kReturned : RunState::kFree);
}

/// Makes a taken run free or returned, and one with its neighbours of that kind.
Status RunHeap::settle(std::uint32_t first, RunState state) noexcept {
  const HeapLock lock(s_);
  const std::uint32_t end = s_.committed_pages();
  if (first >= end) return s_.poison(__LINE__);
  const Run run = Run::unpack(A::load_relaxed(s_.run(first)));
  const bool taken = run.state == RunState::kReserved || run.state == RunState::kSlab ||
                     run.state == RunState::kUnbacked;
  if (!taken || run.length == 0 || run.length > end - first) return s_.poison(__LINE__);
  A::store_release(s_.run(first), word(state, run.length));  // R2: freed. R5: and no slab any more
  std::uint32_t head = first;
  std::uint32_t total = run.length;
  const std::uint32_t behind = first + run.length;
  if (behind < end) {
    const Run next = Run::unpack(A::load_relaxed(s_.run(behind)));
    if (next.state == state) {
      if (next.length == 0 || next.length > end - behind) return s_.poison(__LINE__);
      delist(behind, state);
      total += next.length;
    }
  }
  if (run_before(first, state, head)) {
    total += length(head);
    delist(head, state);
  }
  if (total != run.length) A::store_release(s_.run(head), word(state, total));  // R2: merged
  enlist(head, state);
  return Status::kOk;
}

// ---- memory: more of it, and less ----

void RunHeap::count(Failure& why) noexcept {
  why.committed = static_cast<std::uint64_t>(s_.committed_pages()) << kPageShift;
  why.max_size = s_.constants().max_size;
  why.free_bytes = static_cast<std::uint64_t>(A::load_relaxed(s_.header().free_pages))
                   << kPageShift;
  why.largest_run =
      index_size() == 0 ? 0 : static_cast<std::uint64_t>(length(index_at(0))) << kPageShift;
}

namespace {

/// A cgroup kills instead of refusing, so ask before the kernel has to. `wanted` bytes are asked
/// for first; what is left is in `why`.
bool has_headroom(std::uint64_t wanted, Failure& why) noexcept {
  const platform::MemoryLimits limits = platform::memory_limits();
  const std::uint64_t keep = limits.physical / 20;
  const std::uint64_t available = limits.physical == 0      ? UINT64_MAX
                                  : limits.available > keep ? limits.available - keep
                                                            : 0;
  why.reason = available <= limits.cgroup_headroom ? "MemAvailable" : "cgroup";
  why.headroom = std::min(available, limits.cgroup_headroom);
  return wanted <= why.headroom;
}

/// The system refused memory, in spite of the head-room: the numbers behind that.
void explain(Segment& s, int error, Failure& why) noexcept {
  why.reason = "fallocate";
  why.sys_errno = -error;
  if (error == -ENOSPC) platform::file_system_room(s.fd(), why.system_size, why.system_free);
  if (error == -EFBIG) why.system_size = platform::file_size_limit();
}

constexpr std::uint64_t bytes_of(std::uint32_t pages) noexcept {
  return static_cast<std::uint64_t>(pages) << kPageShift;
}

}  // namespace

/// Reserves the memory of a run that is ours and kUnbacked.
Status RunHeap::back(std::uint32_t first, std::uint32_t pages, Failure& why) noexcept {
  Failure refusal = why;
  if (has_headroom(bytes_of(pages), refusal)) {
    const int error = s_.reserve(s_.page_offset(first), bytes_of(pages));
    if (error == 0) return Status::kOk;
    explain(s_, error, refusal);
  }
  const HeapLock lock(s_);
  count(refusal);
  why = refusal;
  return why.status = s_.is_lost() ? Status::kLost : Status::kExhausted;
}

Status RunHeap::refuse(int error, std::uint64_t requested, Failure& why) noexcept {
  why = {};
  why.requested = requested;
  explain(s_, error, why);
  const HeapLock lock(s_);
  count(why);
  return why.status = s_.is_lost() ? Status::kLost : Status::kExhausted;
}

Status RunHeap::grow(std::uint32_t pages, Failure& why) noexcept {
  const Constants& c = s_.constants();
  const std::uint32_t old = s_.committed_pages();
  std::uint32_t tail = old;
  const std::uint32_t tail_length = run_before(old, RunState::kFree, tail) ? length(tail) : 0;
  if (tail_length >= pages) return why.status = s_.poison(__LINE__);
  // A returned tail counts too: what is new becomes one with it (join_neighbours).
  std::uint32_t loose = tail_length;
  for (std::uint32_t head = old - loose;
       run_before(head, RunState::kReturned, head) || run_before(head, RunState::kFree, head);)
    loose = old - head;
  const std::uint32_t room = c.max_pages - old;
  // Only if there is no room for a whole new run: what has to be reserved anew is the same.
  const std::uint32_t need = pages - tail_length <= room ? pages - tail_length
                             : pages > loose             ? pages - loose
                                                         : 1;
  count(why);
  if (need > room) {
    why.reason = "max_size";
    return why.status = Status::kExhausted;
  }
  std::uint32_t step = std::min({std::max(kFirstStep, old / 4), kLargestStep, room});
  step = std::max(step, need);
  if (!has_headroom(bytes_of(step), why) && bytes_of(step = need) > why.headroom)
    return why.status = Status::kExhausted;

  const auto reserve = [&](std::uint32_t n) {
    const std::uint64_t from = old;
    int r = s_.reserve(c.runs + from * 8, std::uint64_t{n} * 8);
    if (r == 0) r = s_.reserve(c.pages + from * sizeof(PageInfo), n * sizeof(PageInfo));
    if (r == 0) r = s_.reserve(c.index + from * 4, std::uint64_t{n} * 4);
    if (r == 0) r = s_.reserve(s_.page_offset(old), bytes_of(n));
    return r;
  };
  int r = reserve(step);
  if (r != 0 && step != need) r = reserve(step = need);
  if (r != 0) {
    explain(s_, r, why);
    return why.status = s_.is_lost() ? Status::kLost : Status::kExhausted;
  }
  A::store_release(s_.run(old), word(RunState::kFree, step));
  set_footer(old, step);
  A::store_release(s_.header().committed_pages, old + step);  // R2: the heap is longer now
  if (tail_length != 0) {
    delist(tail, RunState::kFree);
    A::store_release(s_.run(tail), word(RunState::kFree, tail_length + step));  // R2
    enlist(tail, RunState::kFree);
  } else {
    enlist(old, RunState::kFree);
  }
  A::fetch_add(s_.header().growths, 1);
  return Status::kOk;
}

std::uint32_t RunHeap::give_back(std::uint32_t most) noexcept {
  std::uint32_t given = 0;
  while (most - given >= kGiveBack) {
    std::uint32_t first = 0;
    std::uint32_t pages = 0;
    {
      const HeapLock lock(s_);
      if (s_.is_poisoned() || index_size() == 0) break;
      const std::uint32_t run = index_at(0);  // the longest
      const std::uint32_t whole = length(run);
      if (Run::unpack(A::load_relaxed(s_.run(run))).state != RunState::kFree || whole == 0 ||
          whole > s_.committed_pages() - run) {
        (void)s_.poison(__LINE__);
        break;
      }
      pages = std::min(whole, most - given);
      if (pages < kGiveBack) break;
      first = run + (whole - pages);
      delist(run, RunState::kFree);
      A::store_release(s_.run(first), word(RunState::kUnbacked, pages, s_.token()));          // R4
      if (first != run) A::store_release(s_.run(run), word(RunState::kFree, whole - pages));  // R2
      set_footer(first, pages);
      if (first != run) enlist(run, RunState::kFree);
    }
    const int error = s_.punch(s_.page_offset(first), bytes_of(pages));
    if (settle(first, error == 0 ? RunState::kReturned : RunState::kFree) != Status::kOk) break;
    if (error != 0) break;  // this file system has no holes, or the descriptor is another's
    A::fetch_add(s_.header().returned_bytes, bytes_of(pages));
    given += pages;
  }
  return given;
}

void RunHeap::give_back_surplus() noexcept {
  constexpr std::uint64_t kWhile = 1'000'000'000;  // ns
  constexpr std::uint64_t kPause = 100'000'000;
  Header& h = s_.header();
  const auto now = static_cast<std::uint64_t>(platform::monotonic_ns());
  // relaxed: only a hint here, looked at again under the lock
  if (now - A::load_relaxed(h.least_since) < kWhile) return;
  std::uint32_t surplus = 0;
  {
    const HeapLock lock(s_);
    if (now - A::load_relaxed(h.least_since) < kWhile) return;
    const std::uint32_t least = A::load_relaxed(h.least_free);
    surplus = least > kWarm ? std::min(least - kWarm, kAtOnce) : 0;
    if (least > kWarm + kAtOnce) {  // the rest was not needed for as long: soon
      A::store_relaxed(h.least_free, least - surplus);
      A::store_relaxed(h.least_since, now - kWhile + kPause);
    } else {
      A::store_relaxed(h.least_free, A::load_relaxed(h.free_pages));
      A::store_relaxed(h.least_since, now);
    }
  }
  if (surplus != 0) (void)give_back(surplus);
}

bool RunHeap::rebuild() noexcept {
  const std::uint32_t end = s_.committed_pages();
  Header& h = s_.header();
  A::store_relaxed(h.index_size, 0);
  A::store_relaxed(h.free_pages, 0);
  A::store_relaxed(h.returned_pages, 0);
  A::store_relaxed(h.returned_first, 0);
  for (std::uint32_t p = 0; p < end;) {
    Run run = Run::unpack(A::load_relaxed(s_.run(p)));
    if (run.state == RunState::kNone || run.state > RunState::kUnbacked || run.length == 0 ||
        run.length > end - p)
      return false;
    if (run.state == RunState::kFree || run.state == RunState::kReturned) {
      std::uint32_t total = run.length;
      while (p + total < end) {
        const Run next = Run::unpack(A::load_relaxed(s_.run(p + total)));
        if (next.state != run.state) break;
        if (next.length == 0 || next.length > end - p - total) return false;
        total += next.length;
      }
      if (total != run.length) {
        run.length = total;
        A::store_release(s_.run(p), word(run.state, total));  // R2
      }
      enlist(p, run.state);
    } else {
      set_footer(p, run.length);
    }
    p += run.length;
  }
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
