// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// copy.hpp - copying large amounts into blocks, past the processor's cache.
//
// Overview
//   A store first reads the line that it changes, from memory if the cache no longer has it. So
//   where a thread goes through more memory than the cache keeps, a copy costs two reads and a
//   write; stores that pass the cache by save one read. For less they cost more: the receiver would
//   find the bytes in the cache that both share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ipcbuf {

/// Bytes. Measured on an EPYC whose cores share 32 MiB: with 16 MiB of blocks in turn, copies past
/// the cache are 10 % faster if the receiver only looks at them and 20 % slower if it copies them;
/// with 32 MiB 20 % faster and equal, with 72 MiB 30 % and 10 % faster.
inline constexpr std::uint64_t kCached = 32U << 20;
/// Bytes of one copy: below, the fence behind it is not worth it.
inline constexpr std::size_t kLeastPastCache = 256U << 10;

/// Copies; whatever this thread stores behind it is seen behind it.
void copy_past_cache(void* to, const void* from, std::size_t n) noexcept;

}  // namespace ipcbuf
