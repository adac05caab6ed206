// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// fork.hpp - the segments of this process, and what a fork does to them.
//
// Overview
//   Before a fork the parent takes a seat for the child in each segment, and holds in the
//   child's name on every endpoint and every view that is alive: so there is no instant in
//   which the child has something that only the parent keeps alive. The child then moves in.
//   The seat's life byte is held by a description that both inherit; the parent lets go of
//   its copy, so the byte lives exactly as long as the child. If the fork failed, the byte is
//   free at once and the reaper takes the seat back.
//
//   A child shares the mapping's open file description with its parent, and with that the lock on
//   the parent's life byte. So it maps the segment anew through its own description, over the same
//   addresses; else who looks from another pid namespace would see the parent alive in its child.
//
//   A child made by a raw clone runs no handlers. A page that the kernel wipes at every fork
//   tells: the first use of a token finds zero there, and the child takes a seat of its own.
//   If another thread of the parent was inside a private lock at that moment, what it guards was
//   copied half changed, and nobody will ever give it back. Such a child is torn: the page stays
//   zero, the child gets no seat, and every call is refused (kTorn).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

class ForkHandlers {
 public:
  static void add(const std::shared_ptr<Segment>& segment);
  static void remove(const Segment& segment);
  static std::shared_ptr<Segment> find(const std::function<bool(const Segment&)>& is_it);
  /// Serialises attaches, so that a process maps a segment once.
  static std::unique_lock<std::mutex> attach_lock();
  /// Reads 1 in a process that ran its handlers, 0 behind a raw clone.
  static const std::uint32_t* alive_page();
  static bool barrier_registered();
  /// In the child of a raw clone, before anything else: it takes its own seats, or is torn.
  static void raw_fork() noexcept;
  /// Looks for that first. Whoever asks for one of our mutexes has asked this before.
  static bool is_torn() noexcept;

 private:
  static void prepare() noexcept;
  static void parent() noexcept;
  static void child() noexcept;
  /// Lets a child go over to an open file description of its own; negative: there is none.
  static void use_description(Segment& segment, int own) noexcept;
  static void move_in(Segment& segment) noexcept;
};

}  // namespace ipcbuf
