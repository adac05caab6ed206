// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/parcels.hpp"

#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/slots.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

std::uint64_t ward_word(Token parcels, std::uint32_t pid) noexcept {
  const auto started = static_cast<std::uint32_t>(platform::start_time(pid) & Ward::kMask);
  return Ward{generation_of(parcels), started, pid}.pack();
}

}  // namespace

Status reserve_parcels(Segment& s, Token& out) {
  // The life byte says that we live until the ward does so. It is no proof of the other's life.
  const int own = platform::reopen(s.fd());
  const Status status = claim_slot(s, own, own >= 0, out);
  if (status == Status::kOk) {
    A::store_release(s.slot(slot_of(out)).ward, ward_word(out, platform::process_id()));
    publish_seat(s, out, false);
  }
  platform::close_fd(own);
  return status;
}

void address_parcels(Segment& s, Token parcels, std::uint32_t pid) noexcept {
  Atomic<std::uint64_t>& ward = s.slot(slot_of(parcels)).ward;
  std::uint64_t ours = A::load_acquire(ward);
  if (Ward::unpack(ours).generation == generation_of(parcels))
    A::compare_exchange(ward, ours, ward_word(parcels, pid));  // V1
}

void drop_parcels(Segment& s, Token parcels) { reap(s, parcels); }

}  // namespace ipcbuf
