// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// bare_ring.cpp - the least that a ring between two processes can be, for Python: what a channel
// of ipcbuf is measured against. No doorbell, no liveness, no owner, no time-out; both sides spin.
#include <nanobind/nanobind.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>

#include "ipcbuf/platform.hpp"

namespace nb = nanobind;

namespace {

/// In memory that processes share which are forked later.
class BareRing {
 public:
  BareRing() {
    void* const at = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    shared_ = new (at) Shared;
  }
  BareRing(const BareRing&) = delete;
  BareRing& operator=(const BareRing&) = delete;
  ~BareRing() { ::munmap(shared_, sizeof(Shared)); }

  void send(nb::bytes data) {
    if (data.size() > kMost) throw nb::value_error("more than a slot takes");
    while (mine_ - others_ == kSlots) {
      others_ = shared_->read.load(std::memory_order_acquire);
      if (mine_ - others_ == kSlots) ipcbuf::platform::cpu_pause();
    }
    Slot& slot = shared_->slots[mine_ % kSlots];
    slot.length = data.size();
    std::memcpy(slot.bytes, data.c_str(), data.size());
    shared_->write.store(++mine_, std::memory_order_release);
  }
  nb::bytes recv() {
    while (mine_ == others_) {
      others_ = shared_->write.load(std::memory_order_acquire);
      if (mine_ == others_) ipcbuf::platform::cpu_pause();
    }
    const Slot& slot = shared_->slots[mine_ % kSlots];
    nb::bytes data(slot.bytes, slot.length);
    shared_->read.store(++mine_, std::memory_order_release);
    return data;
  }

 private:
  static constexpr std::uint64_t kSlots = 1024;
  static constexpr std::uint64_t kMost = 64;
  struct Slot {
    std::uint64_t length;
    char bytes[kMost];
  };
  struct Shared {
    alignas(64) std::atomic<std::uint64_t> write{0};
    alignas(64) std::atomic<std::uint64_t> read{0};
    alignas(64) Slot slots[kSlots];
  };
  Shared* shared_;
  std::uint64_t mine_ = 0;    // each process uses its own copy
  std::uint64_t others_ = 0;  // as last seen
};

}  // namespace

NB_MODULE(bare_ring, m) {
  nb::class_<BareRing>(m, "BareRing")
      .def(nb::init<>())
      .def("send", &BareRing::send)
      .def("recv", &BareRing::recv);
}
