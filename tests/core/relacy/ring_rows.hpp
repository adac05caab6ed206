// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ring_rows.hpp - the core's ring over rl::atomic. Its words are larger than their values, so they
// lie in an array of their own.
#pragma once

// clang-format off
#include "ipcbuf/ring.hpp"  // before Relacy, which redefines the names of the memory orders
#include "atomics.hpp"
// clang-format on

namespace ipcbuf {

struct RelacyRingHeader {
  rl::atomic<std::uint64_t> write_word;
  rl::atomic<std::uint64_t> read_word;
};

template <>
struct Ring<RelacyAtomics> {
  using Word = rl::atomic<std::uint64_t>;
  RelacyRingHeader* header = nullptr;
  std::byte* data = nullptr;
  std::uint32_t capacity = 0;
  Word* words = nullptr;
  Word& word_at(std::uint32_t index) const { return words[index / 8]; }
};

}  // namespace ipcbuf
