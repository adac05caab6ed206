// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// atomics.hpp - the one policy through which the core touches shared words.
//
// Overview
//   Every access to a word that another thread or process may touch goes through a
//   policy `A`. The same source is compiled with
//     StdAtomics    what ships: std::atomic
//     CrashAtomics  counts the stores and ends the process at a chosen one
//   and can be compiled with a policy over rl::atomic (Relacy). A policy is a struct
//   with a `Cell<T>` and the static functions below; no code outside a policy names a
//   std::memory_order.
//
// Why functions with the order in their name and not std::atomic's members: a checker
// such as Relacy wants the call site of every access, and a reader wants to see the order.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

namespace ipcbuf {

struct StdAtomics {
  template <class T>
  using Cell = std::atomic<T>;

  template <class T>
  static T load_relaxed(const Cell<T>& c) noexcept {
    return c.load(std::memory_order_relaxed);
  }
  template <class T>
  static T load_acquire(const Cell<T>& c) noexcept {
    return c.load(std::memory_order_acquire);
  }
  template <class T>
  static T load_seq(const Cell<T>& c) noexcept {
    return c.load(std::memory_order_seq_cst);
  }
  template <class T>
  static void store_relaxed(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    c.store(v, std::memory_order_relaxed);
  }
  template <class T>
  static void store_release(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    c.store(v, std::memory_order_release);
  }
  template <class T>
  static void store_seq(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    c.store(v, std::memory_order_seq_cst);
  }
  template <class T>
  static T exchange(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return c.exchange(v, std::memory_order_seq_cst);
  }
  /// Acquire on failure; `expected` gets what was seen. Sequentially consistent on success: where
  /// two store by it and then look at each other's word, one sees the other (relacy/remote_free).
  template <class T>
  static bool compare_exchange(Cell<T>& c, T& expected, std::type_identity_t<T> v) noexcept {
    return c.compare_exchange_strong(expected, v, std::memory_order_seq_cst,
                                     std::memory_order_acquire);
  }
  template <class T>
  static T fetch_or(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return c.fetch_or(v, std::memory_order_seq_cst);
  }
  template <class T>
  static T fetch_and(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return c.fetch_and(v, std::memory_order_seq_cst);
  }
  template <class T>
  static T fetch_add(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return c.fetch_add(v, std::memory_order_seq_cst);
  }
  /// Keeps the compiler from moving a load up over an earlier store (no instruction).
  static void compiler_barrier() noexcept { std::atomic_signal_fence(std::memory_order_seq_cst); }
  /// Keeps earlier loads, also plain ones, in front of later ones: who read what may change
  /// meanwhile looks behind it whether it has. No instruction on x86-64, where loads stay in order.
  static void load_barrier() noexcept {
#ifdef __SANITIZE_THREAD__  // which does not know fences
    std::atomic_signal_fence(std::memory_order_acquire);
#else
    std::atomic_thread_fence(std::memory_order_acquire);
#endif
  }
};

/// Counts the stores of the process and calls `_exit(137)` in front of the chosen one.
struct CrashAtomics : StdAtomics {
  static inline std::atomic<long> stores{0};
  static inline std::atomic<long> crash_at{-1};

  static void point() noexcept {
    if (stores.fetch_add(1, std::memory_order_relaxed) == crash_at.load(std::memory_order_relaxed))
      ::_exit(137);
  }
  template <class T>
  static void store_relaxed(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    point(), StdAtomics::store_relaxed(c, v);
  }
  template <class T>
  static void store_release(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    point(), StdAtomics::store_release(c, v);
  }
  template <class T>
  static void store_seq(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    point(), StdAtomics::store_seq(c, v);
  }
  template <class T>
  static T exchange(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return point(), StdAtomics::exchange(c, v);
  }
  template <class T>
  static bool compare_exchange(Cell<T>& c, T& expected, std::type_identity_t<T> v) noexcept {
    return point(), StdAtomics::compare_exchange(c, expected, v);
  }
  template <class T>
  static T fetch_or(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return point(), StdAtomics::fetch_or(c, v);
  }
  template <class T>
  static T fetch_and(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return point(), StdAtomics::fetch_and(c, v);
  }
  template <class T>
  static T fetch_add(Cell<T>& c, std::type_identity_t<T> v) noexcept {
    return point(), StdAtomics::fetch_add(c, v);
  }
};

#ifndef IPCBUF_ATOMICS
#define IPCBUF_ATOMICS StdAtomics
#endif

/// The policy of this build.
using Atomics = IPCBUF_ATOMICS;

template <class T>
using Atomic = Atomics::Cell<T>;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "must work across processes");
static_assert(std::atomic<std::uint32_t>::is_always_lock_free, "must work across processes");
static_assert(sizeof(Atomic<std::uint64_t>) == 8 && sizeof(Atomic<std::uint32_t>) == 4);

}  // namespace ipcbuf
