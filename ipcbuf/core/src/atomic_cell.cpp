// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/atomic_cell.hpp"

#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/slice.hpp"

namespace ipcbuf {

using A = Atomics;

/// In the child of a fork: who was inside is not here.
void AtomicCell::forget_parents_threads() noexcept {
  const Token me = s_.token();
  if (token_.exchange(me) != me) users_.fetch_and(kClosed);
}

bool AtomicCell::enter() noexcept {
  if (token_.load(std::memory_order_relaxed) != s_.token()) forget_parents_threads();
  std::uint32_t users = users_.load();
  do {
    if ((users & kClosed) != 0) return false;
  } while (!users_.compare_exchange_weak(users, users + kOne));
  return true;
}

void AtomicCell::leave() noexcept {
  if (users_.fetch_sub(kOne) == (kClosed | kOne)) s_.remove_endpoint(id_, End::kSender);
}

void AtomicCell::close() {
  if (token_.load(std::memory_order_relaxed) != s_.token()) forget_parents_threads();
  if (users_.fetch_or(kClosed) == 0) s_.remove_endpoint(id_, End::kSender);
}

void AtomicCell::notify(int n) noexcept {
  Doorbell<> bell(row_.data, s_.asymmetric());
  if ((bell.look() & kBellWaiting) == 0) return;  // N1
  if (n < 0) {
    std::uint32_t word = A::load_relaxed(row_.data.word);
    while (!A::compare_exchange(row_.data.word, word, (word + kBellStep) & ~kBellWaiting)) {  // N2
    }
    platform::futex_wake(&row_.data.word, INT32_MAX);
    return;
  }
  A::fetch_add(row_.data.word, kBellStep);
  platform::futex_wake(&row_.data.word, n);
}

Status AtomicCell::wait_slice(std::uint64_t old, std::int64_t until_ns, Wait& wait) noexcept {
  Doorbell<> bell(row_.data, s_.asymmetric());
  const std::uint32_t word = bell.announce();  // N1
  if (load() != old) return Status::kOk;
  if (platform::monotonic_ns() >= until_ns) return Status::kEmpty;
  bell.sleep(word, slice_end(until_ns, wait.began));
  return load() != old ? Status::kOk : Status::kSlice;
}

}  // namespace ipcbuf
