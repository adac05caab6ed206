// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/wait_set.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "ipcbuf/bridge.hpp"
#include "ipcbuf/doorbell.hpp"
#include "ipcbuf/slice.hpp"

namespace ipcbuf {

WaitSet::WaitSet(std::vector<Endpoint*> ends, const std::vector<int>& fds)
    : ends_(std::move(ends)), ready_(ends_.size()), given_(fds.size()) {
  for (const int fd : fds) fds_.push_back({fd, platform::kReadable, 0});
  for (Endpoint* end : ends_) {
    if (end->has_futex()) {
      rung_by_futex_.push_back(end);
    } else {
      rung_by_fd_.push_back(end);
      fds_.push_back({end->bell_fd(), platform::kReadable, 0});
    }
  }
}

WaitSet::~WaitSet() {
  if (alarm_.fd >= 0) Bridge::unwatch(alarm_);
  if (!slept_) return;
  Wait wait;
  wait.slept = wait.marked = true;
  for (Endpoint* end : rung_by_futex_) end->finish_wait(wait);
}

/// What is ready now; fills `ready_` and the events of the descriptors.
Status WaitSet::look(Failure& why) {
  bool any = false;
  if (!fds_.empty()) {
    const int r = platform::poll_many(fds_.data(), fds_.size(), 0);
    if (r < 0 && r != -EINTR) {
      why = {Status::kSystem, -r, "ppoll"};
      return why.status;
    }
    for (std::size_t i = 0; i < given_; ++i) {
      if ((fds_[i].seen & platform::kNotOpen) != 0) {
        why = {Status::kSystem, EBADF, "ppoll"};
        return why.status;
      }
      any = any || fds_[i].seen != 0;
    }
    for (std::size_t i = 0; i < rung_by_fd_.size(); ++i)
      if ((fds_[given_ + i].seen & platform::kHangup) != 0) rung_by_fd_[i]->look_for_hangup();
  }
  for (std::size_t i = 0; i < ends_.size(); ++i) {
    if (ends_[i]->is_closed()) return why.status = Status::kClosed;
    ready_[i] = ends_[i]->is_ready();
    any = any || ready_[i];
  }
  return any ? Status::kOk : Status::kEmpty;
}

Status WaitSet::slice(std::int64_t until_ns, Failure& why) {
  if (const Status status = look(why); status != Status::kEmpty) return status;
  const std::int64_t now = platform::monotonic_ns();
  if (began_ == 0) began_ = looked_ = now;
  const std::int64_t slice = slice_ns(now - began_);
  const bool over = now >= until_ns;
  if (over && last_) return Status::kEmpty;
  if (over || now - looked_ >= slice) {
    looked_ = now;
    for (Endpoint* end : ends_) peers_.note(*end);
    peers_.look();
  }
  if (over) {
    last_ = true;
    return Status::kSlice;  // once more: the dead have been buried (D7)
  }
  const std::int64_t end = std::min(until_ns, now + slice);
  if (!fds_.empty() || rung_by_futex_.size() > platform::kMaxFutexWaits ||
      (rung_by_futex_.size() > 1 && !platform::has_futex_wait_any()))
    return sleep_on_descriptors(end, why);
  sleep_on_futexes(end);
  return Status::kSlice;
}

void WaitSet::sleep_on_futexes(std::int64_t until_ns) {
  waits_.clear();
  slept_ = true;
  bool asymmetric = false;
  for (Endpoint* end : rung_by_futex_) {
    waits_.push_back({&end->bell_row().word, Doorbell<>(end->bell_row(), false).mark()});  // D1
    asymmetric = asymmetric || end->segment().asymmetric();
  }
  if (asymmetric) platform::barrier_all();
  for (Endpoint* end : rung_by_futex_) {
    if (end->is_ready() || end->is_closed()) return;
    mark_sleeper(end->bell_row(), end->segment().token(), began_);
  }
  if (waits_.size() == 1) {
    platform::futex_wait(waits_[0].word, waits_[0].expected, until_ns);
    return;
  }
  const int r = platform::futex_wait_any(waits_.data(), waits_.size(), until_ns);
  if (r == -ENOSYS || r == -EPERM) {  // taken away by a late filter: a slice of the first word
    const std::int64_t soon = platform::monotonic_ns() + 10'000'000;
    platform::futex_wait(waits_[0].word, waits_[0].expected, std::min(until_ns, soon));
  }
}

/// The descriptors of ends that have one become level-triggered; the bridge rings for the others.
Status WaitSet::prepare(Failure& why) {
  if (!prepared_) {
    for (Endpoint* end : rung_by_fd_) {
      const Status status = static_cast<ReceiverEnd*>(end)->arm();
      if (status == Status::kContended) return Status::kSlice;  // that has taken a slice
      if (status != Status::kOk) return why.status = status;
    }
    prepared_ = true;
  }
  if (rung_by_futex_.empty() || alarm_.fd >= 0) return Status::kOk;
  // Here for the first time, or a signal handler forked and we are the child.
  const Status status = Bridge::watch(rung_by_futex_, alarm_, why);
  if (status == Status::kOk) {
    fds_.resize(given_ + rung_by_fd_.size());
    fds_.push_back({alarm_.fd, platform::kReadable, 0});
  }
  return status;
}

Status WaitSet::sleep_on_descriptors(std::int64_t until_ns, Failure& why) {
  if (const Status status = prepare(why); status != Status::kOk) return status;
  const int r = platform::poll_many(fds_.data(), fds_.size(), until_ns);
  if (r < 0 && r != -EINTR) {
    why = {Status::kSystem, -r, "ppoll"};
    return why.status;
  }
  if (rung_by_futex_.empty() || r <= 0 || fds_.back().seen == 0) return Status::kSlice;
  const Status status = look(why);
  // Another process was faster: the alarm is for what comes next.
  if (status == Status::kEmpty) Bridge::rearm(alarm_);
  return status == Status::kEmpty ? Status::kSlice : status;
}

}  // namespace ipcbuf
