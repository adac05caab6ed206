// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// peer_watch.hpp - whether those live on whom somebody waits at many ends.
//
// Overview
//   Proof of death costs several system calls, so each process is looked at once however many
//   ends depend on it, and of very many processes a part at a time, in turn. Who is dead is
//   buried, which rings every bell that concerns it.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "ipcbuf/channel.hpp"

namespace ipcbuf {

class PeerWatch {
 public:
  /// Processes looked at by one `look`.
  static constexpr std::size_t kPerLook = 64;

  /// The processes that `end` depends on, beside those noted before.
  void note(Endpoint& end);
  /// Buries those of them that are dead, and forgets them all.
  void look();
  [[nodiscard]] bool empty() const noexcept { return peers_.empty(); }
  void clear() noexcept { peers_.clear(); }

 private:
  std::vector<std::pair<std::shared_ptr<Segment>, Token>> peers_;
  std::vector<Token> tokens_;  // scratch
  std::size_t turn_ = 0;
};

}  // namespace ipcbuf
