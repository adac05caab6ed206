// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/fork.hpp"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>
#include <vector>

#include "ipcbuf/block.hpp"
#include "ipcbuf/bridge.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/slots.hpp"

namespace ipcbuf {

namespace {

struct Registry {
  std::mutex attach;  // outermost; then `list`; then each segment's own
  std::mutex list;
  std::vector<std::pair<Segment*, std::weak_ptr<Segment>>> segments;
  std::uint32_t* alive = nullptr;
  bool barrier = false;
  bool torn = false;
};

/// Never destroyed: daemon threads may use segments while the process exits.
Registry& registry() {
  static Registry* const r = new Registry;
  return *r;
}

/// By a thread that is not here, if nobody but us is.
bool is_held(std::mutex& mutex) noexcept {
  if (!mutex.try_lock()) return true;
  mutex.unlock();
  return false;
}

}  // namespace

const std::uint32_t* ForkHandlers::alive_page() {
  static const bool once = [] {
    Registry& r = registry();
    static std::uint32_t fallback = 0;
    void* page = platform::wipe_on_fork_page();
    r.alive = page == nullptr ? &fallback : static_cast<std::uint32_t*>(page);
    *r.alive = 1;
    ::pthread_atfork(prepare, parent, child);
    return true;
  }();
  (void)once;
  return registry().alive;
}

bool ForkHandlers::barrier_registered() {
  static const bool once = registry().barrier = platform::register_barrier();
  (void)once;
  return registry().barrier;
}

void ForkHandlers::add(const std::shared_ptr<Segment>& segment) {
  if (is_torn()) return;
  const std::lock_guard lock(registry().list);
  registry().segments.emplace_back(segment.get(), segment);
}

void ForkHandlers::remove(const Segment& segment) {
  if (is_torn()) return;
  const std::lock_guard lock(registry().list);
  std::erase_if(registry().segments, [&](const auto& known) { return known.first == &segment; });
}

std::shared_ptr<Segment> ForkHandlers::find(const std::function<bool(const Segment&)>& is_it) {
  if (is_torn()) return nullptr;
  // Dropped behind the lock: what others let go meanwhile ends here, and asks for the lock.
  std::vector<std::shared_ptr<Segment>> seen;
  const std::lock_guard lock(registry().list);
  for (const auto& [raw, weak] : registry().segments) {
    auto alive = weak.lock();
    if (!alive) continue;
    seen.push_back(std::move(alive));
    if (is_it(*seen.back())) return seen.back();
  }
  return nullptr;
}

std::unique_lock<std::mutex> ForkHandlers::attach_lock() {
  (void)is_torn();
  return std::unique_lock(registry().attach);
}

void ForkHandlers::prepare() noexcept {
  if (is_torn()) return;
  Registry& r = registry();
  r.attach.lock();
  r.list.lock();
  for (const auto& known : r.segments) {
    Segment& s = *known.first;
    reap_some(s, 4);
    s.mutex_.lock();
    s.child_fd_ = -1;
    s.child_token_ = 0;
    if (s.is_poisoned() || s.is_lost()) continue;
    const int own = platform::reopen(s.fd_);
    const bool life_bytes = own >= 0;
    if (claim_slot(s, life_bytes ? own : s.fd_, life_bytes, s.child_token_) != Status::kOk) {
      platform::close_fd(own);  // no seat left: the child will find out at its first call
      continue;
    }
    s.child_fd_ = own;
    Atomics::store_release(s.slot(slot_of(s.child_token_)).state,
                           slot_word(s.child_token_, SlotState::kReserved));
    for (const auto& [key, count] : s.endpoints_) {
      const auto channel = static_cast<std::uint32_t>(key / 2);
      (void)add_hold(s, hold_list(s, channel, static_cast<End>(key % 2)),
                     Hold{HoldKind::kProcess, s.child_token_, count});
    }
    for (LiveView* v = s.views_.next; v != &s.views_; v = v->next) {
      if (v->block != 0 && !v->own && !v->pinned &&
          share_block(s, v->block, s.child_token_) != Status::kOk)
        v->pinned = true;
    }
  }
}

void ForkHandlers::parent() noexcept {
  Registry& r = registry();
  if (r.torn) return;
  for (const auto& known : r.segments) {
    platform::close_fd(known.first->child_fd_);
    known.first->child_fd_ = -1;
    known.first->mutex_.unlock();
  }
  r.list.unlock();
  r.attach.unlock();
}

void ForkHandlers::use_description(Segment& s, int own) noexcept {
  s.own_description_ = own >= 0;
  if (own >= 0 && platform::move_fd(own, s.fd_) == 0) s.remap_window();
}

void ForkHandlers::move_in(Segment& s) noexcept {
  if (s.child_token_ != 0) {
    use_description(s, s.child_fd_);
    s.token_ = s.child_token_;
    publish_seat(s, s.token_, s.own_description_);
  } else {
    s.token_ = 0;
  }
  s.child_fd_ = -1;
  s.child_token_ = 0;
  for (LiveView* v = s.views_.next; v != &s.views_; v = v->next)
    if (v->own) v->block = 0;
}

void ForkHandlers::child() noexcept {
  Registry& r = registry();
  if (r.torn) return;
  *r.alive = 1;
  if (r.barrier) r.barrier = platform::register_barrier();
  for (const auto& known : r.segments) {
    move_in(*known.first);
    known.first->mutex_.unlock();
  }
  r.list.unlock();
  r.attach.unlock();
}

bool ForkHandlers::is_torn() noexcept {
  Registry& r = registry();
  if (r.alive != nullptr && *r.alive == 0) raw_fork();
  return r.torn;
}

void ForkHandlers::raw_fork() noexcept {
  Registry& r = registry();
  if (r.torn) return;
  // `list` before the segments: they are on it.
  r.torn = Bridge::is_held() || is_held(r.attach) || is_held(r.list) ||
           std::any_of(r.segments.begin(), r.segments.end(),
                       [](const auto& known) { return is_held(known.first->mutex_); });
  if (r.torn) {
    new (&r.attach) std::mutex;
    new (&r.list) std::mutex;
    Bridge::after_torn_copy();
    return;
  }
  *r.alive = 1;
  for (const auto& known : r.segments) {
    Segment& s = *known.first;
    const int own = s.is_lost() ? -EBADF : platform::reopen(s.fd_);
    use_description(s, own);
    s.token_ = 0;
    (void)s.take_seat();
    // What the parent had is the parent's: hold the endpoints ourselves, disown the views.
    for (const auto& [key, count] : s.endpoints_)
      (void)add_hold(s,
                     hold_list(s, static_cast<std::uint32_t>(key / 2), static_cast<End>(key % 2)),
                     Hold{HoldKind::kProcess, s.token_, count});
    for (LiveView* v = s.views_.next; v != &s.views_; v = v->next) v->pinned = true;
  }
  Bridge::after_raw_fork();
}

}  // namespace ipcbuf
