// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/bridge.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <new>
#include <utility>

#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/fork.hpp"
#include "ipcbuf/peer_watch.hpp"
#include "ipcbuf/slice.hpp"

namespace ipcbuf {

/// One end on the list of the bridge. Under its mutex.
struct BridgeWatch {
  Endpoint* end;
  Alarm* alarm;
  BridgeGroup* group;
  bool fired = false;
  std::int64_t since = 0;  // when it was last armed
  std::uint32_t word = 0;  // of the bell, when it was marked
};

struct BridgeGroup {
  /// A bell that the thread may still sleep on though its watch has gone.
  struct Gone {
    std::weak_ptr<Segment> segment;
    BellRow* bell;
  };

  Bridge* bridge = nullptr;
  std::vector<std::unique_ptr<BridgeWatch>> watches;
  std::vector<Gone> gone;
  std::int64_t looked = 0;                // at the peers
  std::atomic<std::uint32_t> control{0};  // grows when the thread shall look again
  bool running = false;
};

namespace {

/// What a thread sleeps at most if the kernel takes futex_waitv away under it (a late filter).
constexpr std::int64_t kPoll = 10'000'000;

std::size_t ends_per_thread() noexcept {
  return platform::has_futex_wait_any() ? platform::kMaxFutexWaits - 1 : 1;
}

void raise(Alarm& alarm) noexcept {
  if (std::exchange(alarm.raised, true)) return;
  (void)platform::write_token(alarm.fd, true);
}

void lower_descriptor(Alarm& alarm) noexcept {
  platform::drain_token(alarm.fd, true);
  alarm.raised = false;
}

}  // namespace

Bridge& Bridge::of_process() {
  static const bool once = [] {
    known_ = new Bridge;  // never destroyed: its threads run until the process ends
    // Registered behind the segments' handlers, so this mutex is taken before theirs.
    ::pthread_atfork(
        [] {
          (void)ForkHandlers::is_torn();
          known_->mutex_.lock();
        },
        [] { known_->mutex_.unlock(); },
        [] {
          known_->after_fork();
          known_->mutex_.unlock();
        });
    return true;
  }();
  (void)once;
  (void)ForkHandlers::is_torn();
  return *known_;
}

// ---- the list ----

Status Bridge::start(Group& group, Failure& why) noexcept {
  if (group.running) return Status::kOk;
  const int error = platform::start_thread(
      [](void* p) {
        auto* mine = static_cast<Group*>(p);
        mine->bridge->run(*mine);
      },
      &group);
  if (error != 0) {
    why = {Status::kSystem, -error, "pthread_create"};
    return why.status;
  }
  group.running = true;
  return Status::kOk;
}

Status Bridge::add(Endpoint& end, Alarm& alarm, Watch*& out, Failure& why) {
  // E1: `close` stores closed_, then looks at watched_; we store that, then look.
  end.watched_ = true;
  if (end.is_closed()) return why.status = Status::kClosed;
  const std::size_t most = ends_per_thread();
  auto group = std::find_if(groups_.begin(), groups_.end(),
                            [most](const auto& g) { return g->watches.size() < most; });
  if (group == groups_.end()) {
    groups_.push_back(std::make_unique<Group>());
    group = groups_.end() - 1;
    (*group)->bridge = this;
  }
  if (const Status status = start(**group, why); status != Status::kOk) return status;
  (*group)->watches.push_back(std::make_unique<Watch>());
  out = (*group)->watches.back().get();
  out->end = &end;
  out->alarm = &alarm;
  out->group = group->get();
  out->since = platform::monotonic_ns();
  return Status::kOk;
}

template <class Which>
void Bridge::remove_if(Which&& which) noexcept {
  for (const auto& group : groups_) {
    const auto first = std::stable_partition(group->watches.begin(), group->watches.end(),
                                             [&](const auto& w) { return !which(*w); });
    if (first == group->watches.end()) continue;
    if (group->running) kick(*group);
    for (auto w = first; w != group->watches.end(); ++w) {
      Endpoint& end = *(*w)->end;
      if (end.watch_ == w->get()) end.watch_ = nullptr;
      unmark_sleeper(end.bell_row(), end.segment().token());
      if (group->running) group->gone.push_back({end.segment().weak_from_this(), &end.bell_row()});
    }
    group->watches.erase(first, group->watches.end());
  }
}

void Bridge::kick(Group& group) noexcept {
  group.control.fetch_add(1);
  platform::futex_wake(&group.control, 1);
  if (platform::has_futex_wait_any()) return;
  for (const auto& w : group.watches) Doorbell<>(w->end->bell_row(), false).wake_all();
}

void Bridge::fire(Watch& w) noexcept {
  w.fired = true;
  if (w.end->watch_ == &w) w.end->alarmed_ = true;
  raise(*w.alarm);
  unmark_sleeper(w.end->bell_row(), w.end->segment().token());
  Doorbell<>(w.end->bell_row(), false).wake();  // B2: the mark was set just now
}

// ---- single ends ----

Status Bridge::descriptor_of(Endpoint& end, int& fd, Failure& why) {
  Bridge& b = of_process();
  const std::lock_guard lock(b.mutex_);
  if (end.is_closed()) return why.status = Status::kClosed;
  if (end.watch_ == nullptr) {
    const int made = platform::make_eventfd(0);
    if (made < 0) {
      why = {Status::kSystem, -made, "eventfd"};
      return why.status;
    }
    end.alarm_ = {made, false};
    if (const Status status = b.add(end, end.alarm_, end.watch_, why); status != Status::kOk) {
      platform::close_fd(made);
      end.alarm_ = {};
      return status;
    }
    // Whoever asks may look at once: what is ready already needs no thread.
    if (end.is_ready()) b.fire(*end.watch_);
    b.kick(*end.watch_->group);
  }
  fd = end.alarm_.fd;
  return Status::kOk;
}

void Bridge::lower(Endpoint& end) noexcept {
  Bridge& b = of_process();
  const std::lock_guard lock(b.mutex_);
  Watch* const w = end.watch_;
  if (w == nullptr || !w->fired || end.is_ready()) return;
  Failure why;
  // Without a thread the descriptor reads ready for ever: busy, but nothing is missed.
  if (b.start(*w->group, why) != Status::kOk) return;
  lower_descriptor(*w->alarm);
  end.alarmed_ = false;
  w->fired = false;
  w->since = platform::monotonic_ns();
  b.kick(*w->group);  // B1
}

void Bridge::closed(Endpoint& end) noexcept {
  Bridge& b = of_process();
  const std::lock_guard lock(b.mutex_);
  b.remove_if([&](Watch& w) {
    if (w.end != &end) return false;
    raise(*w.alarm);
    return true;
  });
}

void Bridge::forget(Endpoint& end) noexcept {
  closed(end);
  platform::close_fd(end.alarm_.fd);
}

// ---- many ends ----

Status Bridge::watch(const std::vector<Endpoint*>& ends, Alarm& alarm, Failure& why) {
  Bridge& b = of_process();
  const int made = platform::make_eventfd(0);
  if (made < 0) {
    why = {Status::kSystem, -made, "eventfd"};
    return why.status;
  }
  Status status = Status::kOk;
  {
    const std::lock_guard lock(b.mutex_);
    alarm = {made, false};
    for (Endpoint* end : ends) {
      Watch* added = nullptr;
      status = b.add(*end, alarm, added, why);
      if (status != Status::kOk) break;
    }
    for (const auto& group : b.groups_)
      if (group->running) b.kick(*group);
  }
  if (status != Status::kOk) unwatch(alarm);
  return status;
}

void Bridge::rearm(Alarm& alarm) noexcept {
  Bridge& b = of_process();
  const std::lock_guard lock(b.mutex_);
  if (alarm.fd < 0) return;
  lower_descriptor(alarm);
  for (const auto& group : b.groups_) {
    bool any = false;
    for (const auto& w : group->watches) {
      if (w->alarm != &alarm || !w->fired) continue;
      w->fired = false;
      any = true;
    }
    if (any) b.kick(*group);
  }
}

void Bridge::unwatch(Alarm& alarm) noexcept {
  Bridge& b = of_process();
  const std::lock_guard lock(b.mutex_);
  b.remove_if([&](const Watch& w) { return w.alarm == &alarm; });
  platform::close_fd(alarm.fd);
  alarm = {};
}

// ---- the thread ----

void Bridge::mark_and_look(Group& group, std::vector<platform::FutexWait>& waits) {
  waits.clear();
  bool asymmetric = false;
  for (const auto& w : group.watches) {
    if (w->fired) continue;
    w->word = Doorbell<>(w->end->bell_row(), false).mark();  // D1, one barrier for all
    asymmetric = asymmetric || w->end->segment().asymmetric();
  }
  if (asymmetric) platform::barrier_all();
  for (const auto& w : group.watches) {
    if (w->fired) continue;
    if (w->end->is_ready()) {
      fire(*w);
      continue;
    }
    mark_sleeper(w->end->bell_row(), w->end->segment().token(), w->since);
    waits.push_back({&w->end->bell_row().word, w->word});
  }
}

void Bridge::run(Group& group) {
  std::vector<platform::FutexWait> waits;
  std::vector<std::shared_ptr<Segment>> kept;  // let go behind the mutex
  PeerWatch peers;
  for (;;) {
    std::int64_t until = platform::kForever;
    std::uint32_t control = 0;
    {
      const std::lock_guard lock(mutex_);
      control = group.control.load();
      for (const Group::Gone& gone : group.gone) {  // B2
        kept.push_back(gone.segment.lock());
        if (kept.back() == nullptr) continue;
        Doorbell<> bell(*gone.bell, false);
        bell.leave();
        bell.wake();
      }
      group.gone.clear();
      mark_and_look(group, waits);
      if (!waits.empty()) {
        std::int64_t since = 0;
        for (const auto& w : group.watches)
          if (!w->fired) since = std::max(since, w->since);
        const std::int64_t now = platform::monotonic_ns();
        const std::int64_t slice = slice_ns(now - since);
        until = now + slice;
        if (now - group.looked >= slice) {
          group.looked = now;
          for (const auto& w : group.watches)
            if (!w->fired) peers.note(*w->end);
        }
      }
    }
    kept.clear();
    peers.look();
    if (waits.empty()) {
      platform::futex_wait(&group.control, control, until);
    } else if (platform::has_futex_wait_any()) {
      waits.push_back({&group.control, control});
      const int r = platform::futex_wait_any(waits.data(), waits.size(), until);
      if (r == -ENOSYS || r == -EPERM)
        platform::futex_wait(&group.control, control,
                             std::min(until, platform::monotonic_ns() + kPoll));
    } else {
      platform::futex_wait(waits[0].word, waits[0].expected, until);
    }
  }
}

// ---- fork ----

void Bridge::after_fork() noexcept {
  for (const auto& group : groups_) {
    group->running = false;  // the thread is the parent's
    group->gone.clear();
  }
  for (const auto& group : groups_) {
    std::erase_if(group->watches, [](const auto& w) {
      Alarm& alarm = *w->alarm;
      const int fd = alarm.fd;
      if (w->end->watch_ == w.get()) {
        // A number that is free and taken again at once: no limit is in the way.
        platform::close_fd(fd);
        const int own = platform::make_eventfd(1);
        if (own >= 0 && platform::move_fd(own, fd) == 0) {
          alarm.raised = w->fired = true;
          w->end->alarmed_ = true;
          return false;
        }
        w->end->watch_ = nullptr;  // no memory: the next request makes another
      } else if (fd >= 0) {        // of a call of another thread, or around a handler that forked
        platform::close_fd(fd);
      }
      alarm = {};
      return true;
    });
  }
}

bool Bridge::is_held() noexcept {
  if (known_ == nullptr) return false;
  if (!known_->mutex_.try_lock()) return true;
  known_->mutex_.unlock();
  return false;
}

void Bridge::after_raw_fork() noexcept {
  if (known_ != nullptr) known_->after_fork();
}

void Bridge::after_torn_copy() noexcept {
  if (known_ == nullptr) return;
  new (&known_->mutex_) std::mutex;
  new (&known_->groups_) std::vector<std::unique_ptr<Group>>;
}

}  // namespace ipcbuf
