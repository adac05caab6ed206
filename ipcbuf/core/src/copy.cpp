// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/copy.hpp"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ipcbuf {

#if defined(__SSE2__)

void copy_past_cache(void* to, const void* from, std::size_t n) noexcept {
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
  constexpr std::size_t kLine = 64;
  const std::size_t before = (0 - reinterpret_cast<std::uintptr_t>(out)) % kLine;
  if (n < before + kLine) {
    std::memcpy(out, in, n);
    return;
  }
  std::memcpy(out, in, before);
  out += before;
  in += before;
  n -= before;
  for (; n >= kLine; n -= kLine, out += kLine, in += kLine) {
    auto* const line = reinterpret_cast<__m128i*>(out);
    const auto* const from_line = reinterpret_cast<const __m128i*>(in);
    const __m128i a = _mm_loadu_si128(from_line);
    const __m128i b = _mm_loadu_si128(from_line + 1);
    const __m128i c = _mm_loadu_si128(from_line + 2);
    const __m128i d = _mm_loadu_si128(from_line + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  std::memcpy(out, in, n);
  _mm_sfence();  // such stores are not ordered by a release store
}

#else

void copy_past_cache(void* to, const void* from, std::size_t n) noexcept {
  std::memcpy(to, from, n);
}

#endif

}  // namespace ipcbuf
