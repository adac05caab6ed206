// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_copy.cpp - copy.hpp: every length and alignment around a cache line, and nothing beside.
#include <cstring>
#include <vector>

#include "check.hpp"
#include "ipcbuf/copy.hpp"

namespace {

constexpr std::size_t kMost = 200;

void copies_what_it_should(std::size_t to, std::size_t from, std::size_t n) {
  std::vector<unsigned char> in(kMost * 3);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned char>(i * 7 + 1);
  std::vector<unsigned char> out(kMost * 3, 0xEE);
  std::vector<unsigned char> expected = out;
  std::memcpy(expected.data() + to, in.data() + from, n);
  ipcbuf::copy_past_cache(out.data() + to, in.data() + from, n);
  CHECK(out == expected);
}

}  // namespace

int main() {
  for (std::size_t to = 0; to < 65; to += 3)
    for (std::size_t from = 0; from < 65; from += 7)
      for (std::size_t n = 0; n <= kMost; n += to % 2 + 1) copies_what_it_should(to, from, n);
}
