// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// parcels.hpp - handles on their way to a process that is being started.
//
// Overview
//   A handle that is pickled keeps its channel alive by a hold (kTransit) until it is unpickled.
//   If that is to happen in a process that is just being started, and that process is killed
//   before, nobody would ever drop the hold: the other end would wait for ever. So such holds are
//   those of a seat of their own, which dies with the new process and is buried as any other.
//   The seat is there before the process is, so at first it dies with us.
//
// Invariants
//   V1  A ward counts only for the generation in it, so one that is written too late, when the
//       seat has gone to somebody else, says nothing about him. It is there before the seat is
//       published (L1), and changes by compare-and-swap alone.
#pragma once

#include <cstdint>

#include "ipcbuf/segment.hpp"

namespace ipcbuf {

/// A seat that holds parcels, and as yet lives as long as we do.
[[nodiscard]] Status reserve_parcels(Segment& segment, Token& out);
/// From now on it lives as long as process `pid` of our pid namespace.
void address_parcels(Segment& segment, Token parcels, std::uint32_t pid) noexcept;
/// Drops what is in it, and gives it back: the process was not started.
void drop_parcels(Segment& segment, Token parcels);

}  // namespace ipcbuf
