// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/peer_watch.hpp"

#include <algorithm>

#include "ipcbuf/reaper.hpp"

namespace ipcbuf {

void PeerWatch::note(Endpoint& end) {
  tokens_.clear();
  end.list_peers(tokens_);
  for (const Token token : tokens_) {
    if (!peers_.empty() && peers_.back().second == token &&
        peers_.back().first.get() == &end.segment())
      continue;  // what many ends have in common comes in a row
    if (auto segment = end.segment().weak_from_this().lock())
      peers_.emplace_back(std::move(segment), token);
  }
}

void PeerWatch::look() {
  std::sort(peers_.begin(), peers_.end());
  peers_.erase(std::unique(peers_.begin(), peers_.end()), peers_.end());
  const std::size_t n = std::min(peers_.size(), kPerLook);
  for (std::size_t i = 0; i < n; ++i) {
    auto& [segment, token] = peers_[(turn_ + i) % peers_.size()];
    if (segment->is_dead(token)) reap(*segment, token);
  }
  turn_ = peers_.size() > kPerLook ? (turn_ + n) % peers_.size() : 0;
  peers_.clear();
}

}  // namespace ipcbuf
