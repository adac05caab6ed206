// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// sole_user.hpp - one thread of a process at a time, and no locked instruction for the first one.
//
// Overview
//   Nearly always the same thread uses a thing. It enters by a plain store to `first_inside_` and
//   looks behind it whether the thing is still its own. Another thread that comes says once and
//   for all that it is not: it stores kMany, then a barrier on all processors makes the first
//   thread's store visible or lets it see kMany. From then on all enter by compare-and-swap on
//   `others_inside_`, and look whether the first one is still inside from before.
//   Where the kernel has no such barrier it is kMany from the beginning.
//
//   What stands in the words is the token of the process: what a fork copied is of nobody here.
//
// Invariants
//   U2  The first thread's "store first_inside_, look at user_" and another's "store user_,
//       barrier, look at first_inside_" cannot both miss each other. kMany says that this barrier
//       is over, kChanging that it may not be.
//
// Pairs (release -> acquire)
//   U1  first_inside_, others_inside_  leave -> enter   carries what the thing keeps privately
#pragma once

#include <cstdint>

#include "ipcbuf/atomics.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf {

/// Tells the threads of this process apart that are alive at one time. Never 0 to 2.
inline std::uint64_t thread_mark() noexcept {
#ifdef __clang__  // which has no such builtin for every processor
  static thread_local char mark;
  return reinterpret_cast<std::uint64_t>(&mark);
#else
  return reinterpret_cast<std::uint64_t>(__builtin_thread_pointer());
#endif
}

template <class A = Atomics>
class SoleUser {
 public:
  /// False: somebody is inside. Does not wait.
  [[nodiscard]] bool enter(std::uint64_t self, std::uint32_t me, bool asymmetric) noexcept {
    if (!enter_first(self, me)) return enter_slowly(self, me, asymmetric);
    is_first_ = true;
    return true;
  }
  void leave() noexcept {
    is_first_ ? leave_first() : A::store_release(others_inside_, 0);  // U1
  }

  /// Only if we are the only thread so far; then `leave_first`.
  [[nodiscard]] bool enter_first(std::uint64_t self, std::uint32_t me) noexcept {
    // relaxed: our own stores, or U2
    if (A::load_relaxed(user_) != self || A::load_relaxed(first_inside_) == me) return false;
    A::store_relaxed(first_inside_, me);
    A::compiler_barrier();
    if (A::load_relaxed(user_) != self) [[unlikely]] {
      A::store_release(first_inside_, 0);
      return false;
    }
    return true;
  }
  void leave_first() noexcept { A::store_release(first_inside_, 0); }  // U1

  /// Nobody who came in before this call is inside when it returns. `self` is not; `me` is not 0.
  void wait_until_left(std::uint64_t self, std::uint32_t me) noexcept {
    const std::uint64_t user = A::load_acquire(user_);
    // U2; should the barrier fail, no store waits in a processor for as long as that.
    if (user > kChanging && user != self && !platform::barrier_all()) platform::pause_ms(1);
    // Sequentially consistent, behind a store of the caller's (E1) that is so, too: who comes in
    // later, by compare-and-swap, sees that store.
    while (A::load_seq(first_inside_) == me || A::load_seq(others_inside_) == me)
      platform::cpu_pause();
  }

 private:
  static constexpr std::uint64_t kMany = 1;
  static constexpr std::uint64_t kChanging = 2;

  [[nodiscard]] bool enter_slowly(std::uint64_t self, std::uint32_t me, bool asymmetric) noexcept {
    std::uint64_t user = A::load_acquire(user_);
    if (user == 0 && A::compare_exchange(user_, user, asymmetric ? self : kMany))
      return enter(self, me, asymmetric);
    if (user == self) return false;  // a signal handler of ours
    if (user != kMany) {
      const std::uint64_t was = user;
      if (user != kChanging && !A::compare_exchange(user_, user, kChanging)) return false;
      if (!platform::barrier_all()) {  // U2
        user = kChanging;
        if (was != kChanging) (void)A::compare_exchange(user_, user, was);
        return false;
      }
      A::store_release(user_, kMany);
    }
    std::uint32_t inside = A::load_relaxed(others_inside_);
    if (inside == me || !A::compare_exchange(others_inside_, inside, me)) return false;  // U1
    if (A::load_acquire(first_inside_) == me) {                                          // U1
      A::store_release(others_inside_, 0);
      return false;
    }
    is_first_ = false;
    return true;
  }

  template <class T>
  using Cell = typename A::template Cell<T>;
  Cell<std::uint64_t> user_{0};  // mark of the only thread so far; 0 nobody yet, kMany, kChanging
  Cell<std::uint32_t> first_inside_{0};
  Cell<std::uint32_t> others_inside_{0};
  bool is_first_ = false;  // of who is inside
};

}  // namespace ipcbuf
