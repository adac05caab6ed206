// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// slice.hpp - how long a wait sleeps before it looks whether somebody has died.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ipcbuf/platform.hpp"

namespace ipcbuf {

inline constexpr std::int64_t kShortSlice = 20'000'000;  // ns, in the first second of a wait
inline constexpr std::int64_t kLongSlice = 200'000'000;

/// Of a wait that began so long ago.
[[nodiscard]] constexpr std::int64_t slice_ns(std::int64_t waited_ns) noexcept {
  return waited_ns < 1'000'000'000 ? kShortSlice : kLongSlice;
}

/// When the slice ends that begins now, at `until_ns` at the latest. `began`: when the wait began,
/// 0 if it does now.
[[nodiscard]] inline std::int64_t slice_end(std::int64_t until_ns, std::int64_t& began) noexcept {
  const std::int64_t now = platform::monotonic_ns();
  if (began == 0) began = now;
  return now + std::min(until_ns - now, slice_ns(now - began));
}

}  // namespace ipcbuf
