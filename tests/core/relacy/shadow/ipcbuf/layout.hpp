// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// layout.hpp - in place of the core's: rows of rl::atomic, which are larger than they are in
// memory.
#pragma once

#include <cstdint>

#include "../../atomics.hpp"

namespace ipcbuf {

using Atomics = RelacyAtomics;

struct BellRow {
  rl::atomic<std::uint32_t> word;
  rl::atomic<std::uint32_t> sleeper;
  rl::atomic<std::uint64_t> sleeps_since;
};

}  // namespace ipcbuf
