// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// wait_set.hpp - one call that waits until any of many ends, or descriptors, is ready.
//
// Overview
//   Ends that are rung by a futex, as many as `futex_waitv` takes: mark every bell, one barrier,
//   look at every end, sleep on all words (D1 of doorbell.hpp for each). Else the bridge sleeps on
//   the bells and we poll one descriptor of its, beside those of others. Sliced like every wait;
//   the processes on whom the ends depend are looked at once a slice, each once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/peer_watch.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf {

class WaitSet {
 public:
  /// All of `ends` outlive the set. `fds` are polled for being readable, hung up or in error.
  WaitSet(std::vector<Endpoint*> ends, const std::vector<int>& fds);
  WaitSet(const WaitSet&) = delete;
  WaitSet& operator=(const WaitSet&) = delete;
  /// D2 for every end that was slept on.
  ~WaitSet();

  /// One look and at most one slice of sleep. kOk: something is ready; kEmpty: the time is up;
  /// kClosed: an end was closed here; kSystem with EBADF: a descriptor is not open; kSlice: look
  /// for signals and call again.
  [[nodiscard]] Status slice(std::int64_t until_ns, Failure& why);
  [[nodiscard]] bool is_end_ready(std::size_t i) const { return ready_[i]; }
  [[nodiscard]] bool is_fd_ready(std::size_t i) const { return fds_[i].seen != 0; }

 private:
  [[nodiscard]] Status look(Failure& why);
  [[nodiscard]] Status prepare(Failure& why);
  void sleep_on_futexes(std::int64_t until_ns);
  [[nodiscard]] Status sleep_on_descriptors(std::int64_t until_ns, Failure& why);

  std::vector<Endpoint*> ends_;
  std::vector<bool> ready_;
  std::vector<platform::PollFd> fds_;  // given, then of ends that a descriptor rings, then ours
  std::vector<Endpoint*> rung_by_fd_;  // whose descriptors follow the given ones in `fds_`
  std::vector<Endpoint*> rung_by_futex_;
  std::vector<platform::FutexWait> waits_;
  std::size_t given_;
  PeerWatch peers_;
  Alarm alarm_;
  std::int64_t began_ = 0;
  std::int64_t looked_ = 0;
  bool prepared_ = false;
  bool last_ = false;  // the time is up and the peers were looked at
  bool slept_ = false;
};

}  // namespace ipcbuf
