// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// atomics.hpp - the third policy of core/include/ipcbuf/atomics.hpp: rl::atomic, under which
// Relacy runs the core's own code in all orders that the C++ memory model allows.
#pragma once

// Relacy is older than C++20 and redefines words of the language while it is included.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC system_header
#include <relacy/relacy.hpp>
#pragma GCC diagnostic pop

#include <type_traits>

namespace ipcbuf {

struct RelacyAtomics {
#ifdef IPCBUF_WEAKEN
  static constexpr rl::memory_order kStrong = rl::mo_relaxed;
#else
  static constexpr rl::memory_order kStrong = rl::mo_seq_cst;
#endif

  template <class T>
  using Cell = rl::atomic<T>;

  template <class T>
  static T load_relaxed(const Cell<T>& c) {
    return c.load(rl::mo_relaxed, $);
  }
  template <class T>
  static T load_acquire(const Cell<T>& c) {
    return c.load(rl::mo_acquire, $);
  }
  template <class T>
  static T load_seq(const Cell<T>& c) {
    return c.load(rl::mo_seq_cst, $);
  }
  template <class T>
  static void store_relaxed(Cell<T>& c, std::type_identity_t<T> v) {
    c.store(v, rl::mo_relaxed, $);
  }
  template <class T>
  static void store_release(Cell<T>& c, std::type_identity_t<T> v) {
#ifdef IPCBUF_WEAKEN  // shows that the model would see it
    c.store(v, rl::mo_relaxed, $);
#else
    c.store(v, rl::mo_release, $);
#endif
  }
  template <class T>
  static T exchange(Cell<T>& c, std::type_identity_t<T> v) {
    return c.exchange(v, kStrong, $);
  }
  template <class T>
  static bool compare_exchange(Cell<T>& c, T& expected, std::type_identity_t<T> v) {
    return c.compare_exchange_strong(expected, v, kStrong, $);
  }
  template <class T>
  static T fetch_or(Cell<T>& c, std::type_identity_t<T> v) {
    return c.fetch_or(v, rl::mo_seq_cst, $);
  }
  template <class T>
  static T fetch_and(Cell<T>& c, std::type_identity_t<T> v) {
    return c.fetch_and(v, rl::mo_seq_cst, $);
  }
  template <class T>
  static T fetch_add(Cell<T>& c, std::type_identity_t<T> v) {
    return c.fetch_add(v, rl::mo_seq_cst, $);
  }
  /// The sleeper's barrier acts on the publisher's processor too: here both have a fence.
  static void compiler_barrier() {
#ifndef IPCBUF_WEAKEN
    rl::atomic_thread_fence(rl::mo_seq_cst, $);
#endif
  }
};

}  // namespace ipcbuf
