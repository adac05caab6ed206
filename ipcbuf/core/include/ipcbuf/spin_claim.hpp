// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// spin_claim.hpp - at most one waiter per end burns a core.
//
// The claim lies among the words of the waiter's own end, so that taking and ending it costs the
// other side nothing.
#pragma once

#include <cstdint>

#include "ipcbuf/layout.hpp"

namespace ipcbuf {

class SpinClaim {
 public:
  explicit SpinClaim(EndRow& row) noexcept : row_(row) {}

  [[nodiscard]] bool take(Token me, std::int64_t now, std::int64_t until) noexcept {
    Token owner = Atomics::load_relaxed(row_.spinner);
    if (owner != 0 && static_cast<std::int64_t>(Atomics::load_relaxed(row_.spin_until)) > now)
      return false;  // somebody spins; an expired claim is ignored, its owner may be dead
    if (!Atomics::compare_exchange(row_.spinner, owner, me)) return false;
    Atomics::store_relaxed(row_.spin_until, static_cast<std::uint64_t>(until));
    return true;
  }
  void end() noexcept { Atomics::store_relaxed(row_.spinner, 0); }

 private:
  EndRow& row_;
};

}  // namespace ipcbuf
