// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// bridge.hpp - ends of channels for those who wait on descriptors: select, poll, asyncio.
//
// Overview
//   A futex cannot be polled. So a process that asks for a descriptor gets an eventfd, and one
//   thread that sleeps on the bells of all watched ends in its stead and makes the eventfd
//   readable. A thread serves as many ends as `futex_waitv` takes, one where that call is
//   missing; a process that never asks has none. The threads know nothing of Python, take no
//   signals and are never joined: they end with the process.
//
//   A watch is *fired* once its end was found ready; from then on the thread does not sleep on
//   that bell, until a receive that leaves nothing behind (or a send that is refused) lowers the
//   descriptor again. It may thus read ready although another process was faster, and never
//   reads empty, but for a moment, while something is there.
//
// Invariants
//   B1  A watch that is not fired is one whose bell the thread has marked, or will before it
//       sleeps: mark every bell, barrier, look at every end, sleep (D1 of doorbell.hpp).
//   B2  A thread that stops sleeping on a bell passes the ring on, because it takes no message
//       itself: when it fires (once, so two bridges never ring each other in circles), and for
//       ends that were taken off the list while it slept (D2).
//   B3  Endpoints are touched under the mutex only, and only while they are on the list; closing
//       one takes it off. Nothing under the mutex waits for another process (but to bury one that
//       died with the last lease of an ended channel).
//
// Fork
//   The child has the descriptors and no thread. Each descriptor is replaced, under its number, by
//   one of the child's own that reads ready: so the number stays valid, nothing is missed, and the
//   first receive that finds nothing lowers it and starts the child's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/status.hpp"

namespace ipcbuf {

struct BridgeGroup;  // what one thread serves

class Bridge {
 public:
  // ---- descriptors of single ends ----
  /// A descriptor that reads ready while `end` is; the end's until the object goes.
  static Status descriptor_of(Endpoint& end, int& fd, Failure& why);
  /// Lowers the end's descriptor if it is not ready any more.
  static void lower(Endpoint& end) noexcept;
  /// The end was closed: its descriptor reads ready for good, its waiters are woken.
  static void closed(Endpoint& end) noexcept;
  /// The end's object goes, its descriptor with it.
  static void forget(Endpoint& end) noexcept;

  // ---- one descriptor for many ends, for the time of one call ----
  static Status watch(const std::vector<Endpoint*>& ends, Alarm& alarm, Failure& why);
  /// Lowers the alarm and looks at its ends again.
  static void rearm(Alarm& alarm) noexcept;
  static void unwatch(Alarm& alarm) noexcept;

  // ---- behind a raw clone, which runs no handlers ----
  /// Another thread of the parent was inside.
  [[nodiscard]] static bool is_held() noexcept;
  static void after_raw_fork() noexcept;
  /// What is in it was copied half changed: it is left alone.
  static void after_torn_copy() noexcept;

 private:
  using Watch = BridgeWatch;
  using Group = BridgeGroup;

  static Bridge& of_process();
  [[nodiscard]] Status add(Endpoint& end, Alarm& alarm, Watch*& out, Failure& why);
  [[nodiscard]] Status start(Group& group, Failure& why) noexcept;
  void fire(Watch& watch) noexcept;
  /// Lets the group's thread look again; without futex_waitv it sleeps on the bell itself.
  void kick(Group& group) noexcept;
  /// Takes the watches off the list for which `which(watch)` says so.
  template <class Which>
  void remove_if(Which&& which) noexcept;
  void run(Group& group);
  void mark_and_look(Group& group, std::vector<platform::FutexWait>& waits);
  void after_fork() noexcept;

  static inline Bridge* known_ = nullptr;

  std::mutex mutex_;
  std::vector<std::unique_ptr<Group>> groups_;
};

}  // namespace ipcbuf
