// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// segment.cpp - Python's view of a segment. The work is in core/segment.hpp.
#include <cstring>
#include <new>
#include <string_view>

#include "binding.hpp"
#include "ipcbuf/block.hpp"
#include "ipcbuf/diagnosis.hpp"
#include "ipcbuf/fsck.hpp"
#include "ipcbuf/parcels.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/run_heap.hpp"
#include "ipcbuf/slots.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace ipcbuf::binding {

namespace {

void make(PySegment* self, std::uint64_t max_size, int fd) {
  Failure why;
  std::shared_ptr<Segment> core;
  {
    const WithoutGil released;
    core = fd >= 0 ? Segment::attach(fd, why) : Segment::create(max_size, why);
  }
  if (core == nullptr) raise_status(why.status, why);
  new (self) PySegment(std::move(core), false);
}

BellKind bell_of(std::string_view name) {
  if (name == "futex") return BellKind::kFutex;
  if (name == "eventfd") return BellKind::kEventfd;
  if (name == "socket") return BellKind::kSocket;
  throw nb::value_error("bell must be 'futex', 'eventfd' or 'socket'");
}

template <class End>
nb::object open_end(nb::handle self, std::uint32_t id, std::uint32_t transit, ipcbuf::End end) {
  const auto& core = nb::cast<PySegment&>(self).core;
  require_seat(*core);
  return run_whole(*core, [&] {
    check_hold(*core, open_channel(*core, id, end, transit));
    return nb::cast(new End(nb::borrow(self), core, id), nb::rv_policy::take_ownership);
  });
}

nb::object channel(nb::handle self, std::uint64_t max_items, std::uint64_t max_bytes, bool shared,
                   const char* bell, bool lease) {
  ChannelOptions options;
  options.lease = lease;
  options.shared = shared;
  options.bell = bell_of(bell);
  options.max_items = max_items;
  options.max_bytes = max_bytes;
  if (!shared && !lease && options.bell != BellKind::kFutex)
    throw nb::value_error("a bell that is a descriptor needs shared=True");
  if (lease && options.bell == BellKind::kSocket)
    throw nb::value_error("a leased channel cannot ring a socket");
  const auto& core = nb::cast<PySegment&>(self).core;
  require_seat(*core);
  Failure why;
  std::uint32_t id = 0;
  run_whole(*core, [&] { check(create_channel(*core, options, id, why), why); });
  // The holds taken by create_channel are given up by the two endpoint objects.
  return nb::make_tuple(
      nb::cast(new PySender(nb::borrow(self), core, id), nb::rv_policy::take_ownership),
      nb::cast(new PyReceiver(nb::borrow(self), core, id), nb::rv_policy::take_ownership));
}

nb::dict stats(const PySegment& self) {
  Census c;
  const auto core = self.core.get();
  run_whole(*core, [&] {
    const WithoutGil released;
    c = take_census(*core, false);
  });
  Header& h = core->header();
  using A = Atomics;
  nb::dict out;
  out["max_size"] = core->constants().max_size;
  out["committed_bytes"] = c.committed_bytes;
  out["free_bytes"] = c.free_bytes;
  out["returned_bytes"] = c.returned_bytes;
  out["reserved_bytes"] = c.reserved_bytes;
  out["slab_bytes"] = c.slab_bytes;
  out["used_bytes"] = c.used_bytes;
  out["waste_bytes"] = c.waste_bytes;
  out["free_block_bytes"] = c.free_block_bytes;
  out["overhead_bytes"] = c.overhead_bytes;
  out["slabs"] = c.slabs;
  out["orphan_slabs"] = c.orphan_slabs;
  out["free_blocks"] = c.free_blocks;
  out["process_blocks"] = c.process_blocks;
  out["process_bytes"] = c.process_bytes;
  out["flight_blocks"] = c.flight_blocks;
  out["flight_bytes"] = c.flight_bytes;
  out["ring_blocks"] = c.ring_blocks;
  out["ring_bytes"] = c.ring_bytes;
  out["leased_blocks"] = c.leased_blocks;
  out["returned_blocks"] = c.returned_blocks;
  out["shared_blocks"] = c.shared_blocks;
  out["shared_bytes"] = c.shared_bytes;
  out["tickets"] = c.tickets;
  out["processes"] = c.processes;
  out["parcels"] = c.parcels;
  out["channels"] = c.channels;
  out["messages"] = c.messages;
  out["views"] = core->view_count();
  out["view_bytes"] = core->view_bytes();
  nb::list classes;
  for (const auto& [size, of] : c.by_size) {
    nb::dict row;
    row["block_bytes"] = size;
    row["slabs"] = of.slabs;
    row["used_blocks"] = of.used_blocks;
    row["free_blocks"] = of.free_blocks;
    classes.append(row);
  }
  out["size_classes"] = classes;
  nb::list holders;
  for (const auto& [token, of] : c.holders) {
    nb::dict row;
    row["token"] = token;
    row["pid"] = pid_of(*core, token);
    row["blocks"] = of.blocks;
    row["bytes"] = of.bytes;
    holders.append(row);
  }
  out["holders"] = holders;
  out["slots_used"] = A::load_relaxed(h.slots_high);  // relaxed, as the rest: statistics
  out["reaps"] = A::load_relaxed(h.reaps);
  out["takeovers"] = A::load_relaxed(h.takeovers);
  out["growths"] = A::load_relaxed(h.growths);
  out["given_back_bytes"] = A::load_relaxed(h.returned_bytes);
  out["poisoned"] = A::load_relaxed(h.poisoned);
  require_whole(*core);
  return out;
}

bool cancel_task(const PySegment& self, std::uint64_t offset, std::uint64_t task_id) {
  const auto core = self.core.get();
  return run_whole(*core, [&] {
    BlockPlace place{};
    if (!core->place(offset, place)) return false;
    std::uint64_t expected = task_id << 2 | static_cast<std::uint64_t>(TaskState::kPending);
    return Atomics::compare_exchange(
        core->block(offset).state, expected,
        task_id << 2 | static_cast<std::uint64_t>(TaskState::kCancelled));
  });
}

/// A free block is nobody's task, and one that was allocated anew has another state.
bool has_task(const PySegment& self, std::uint64_t offset, std::uint64_t task_id) {
  const auto core = self.core.get();
  return run_whole(*core, [&] {
    BlockPlace place{};
    Holder holder{};
    return core->place(offset, place) && read_holder(*core, place, holder) &&
           holder.kind != HolderKind::kFree &&
           Atomics::load_relaxed(core->block(offset).state) >> 2 == task_id;  // relaxed: ids differ
  });
}

nb::list processes(const PySegment& self) {
  std::vector<Seat> seats;
  const auto core = self.core.get();
  run_whole(*core, [&] {
    const WithoutGil released;
    seats = list_seats(*core);
  });
  nb::list out;
  for (const Seat& seat : seats) {
    nb::dict row;
    row["slot"] = slot_of(seat.token);
    row["token"] = seat.token;
    row["pid"] = seat.pid;
    row["state"] = seat.state == SlotState::kAlive      ? "alive"
                   : seat.state == SlotState::kReserved ? "reserved"
                                                        : "claiming";
    row["same_namespace"] = seat.same_namespace;
    row["dead"] = seat.dead;
    out.append(row);
  }
  return out;
}

}  // namespace

void bind_segment(nb::module_& m) {
  nb::class_<PySegment> cls(m, "Segment", nb::is_weak_referenceable(),
                            "One mapped region of shared memory.");
  bind_diagnosis(cls);
  cls.def("__init__", make, nb::arg("max_size") = 0, nb::arg("fd") = -1)
      .def_prop_ro(
          "fd",
          [](const PySegment& s) {
            if (s.core->is_lost()) raise_status(Status::kLost);
            return s.core->fd();
          },
          "Descriptor of the segment's memory, this process's own.\n\n"
          "Raises:\n    SegmentLost: Somebody in this process closed it.")
      .def_prop_ro(
          "uuid",
          [](const PySegment& s) {
            const auto& uuid = s.core->constants().uuid;
            return nb::bytes(reinterpret_cast<const char*>(uuid), sizeof uuid);
          },
          "16 bytes that name the segment.")
      .def_prop_ro(
          "max_size", [](const PySegment& s) { return s.core->constants().max_size; },
          "Bytes the segment may grow to.")
      .def_prop_ro(
          "committed",
          [](const PySegment& s) {
            const auto core = s.core.get();
            return run_whole(*core,
                             [&] { return std::uint64_t{core->committed_pages()} << kPageShift; });
          },
          "Bytes backed by memory now.")
      .def_prop_ro(
          "token", [](const PySegment& s) { return s.core->token(); },
          "Names this process among the users of the segment.")
      .def("close_native", &PySegment::close, "As `ipcbuf.Segment.close`.")
      .def_prop_ro(
          "closed", [](const PySegment& s) { return s.core.is_closed(); },
          "True once this object was closed here.")
      .def_prop_ro("_serial", [](const PySegment& s) { return s.core->serial(); })
      .def(
          "allocate",
          [](nb::handle self, std::uint64_t nbytes) {
            const auto& core = nb::cast<PySegment&>(self).core;
            return run_whole(*core, [&] {
              return new PyRecord(nb::borrow(self), allocate(*core, nbytes), nbytes);
            });
          },
          nb::rv_policy::take_ownership, nb::sig("def allocate(self, nbytes: int, /) -> Record"),
          "Return a record of *nbytes* bytes, uninitialised.\n\n"
          "Raises:\n    HeapExhausted: No room, with the numbers.\n"
          "    RecordTooLarge: It could never fit.")
      .def(
          "channel", channel, nb::kw_only(), nb::arg("max_items") = 0, nb::arg("max_bytes") = 0,
          nb::arg("shared") = false, nb::arg("bell") = "futex", nb::arg("lease") = false,
          nb::sig("def channel(self, *, max_items: int = 0, max_bytes: int = 0, "
                  "shared: bool = False, bell: str = 'futex', lease: bool = False) "
                  "-> tuple[Sender, Receiver]"),
          "Make a channel and return its two ends.\n\n"
          "Args:\n    max_items: Messages the channel holds at most; 0 means any number.\n"
          "    max_bytes: Bytes of messages it holds at most, or one larger message; 0: no limit.\n"
          "    shared: Any number of processes and threads may use each end; else one.\n"
          "    bell: What a waiting receiver sleeps on.\n"
          "    lease: What a receiver had taken and not yet finished when it died is delivered "
          "again\n        (`Receiver.recv_leased`). Such ends are shared.")
      .def(
          "open_sender",
          [](nb::handle self, std::uint32_t id, std::uint32_t transit) {
            return open_end<PySender>(self, id, transit, End::kSender);
          },
          nb::sig("def open_sender(self, channel_id: int, transit: int = 0, /) -> Sender"),
          nb::arg(), nb::arg() = 0, "Open the sending end of a channel that came with a handle.")
      .def(
          "open_receiver",
          [](nb::handle self, std::uint32_t id, std::uint32_t transit) {
            return open_end<PyReceiver>(self, id, transit, End::kReceiver);
          },
          nb::sig("def open_receiver(self, channel_id: int, transit: int = 0, /) -> Receiver"),
          nb::arg(), nb::arg() = 0, "Open the receiving end of a channel that came with a handle.")
      .def("cancel_task", cancel_task,
           nb::sig("def cancel_task(self, offset: int, task_id: int, /) -> bool"),
           "Cancel a task that nobody has started. False: it runs, is done, or is gone.")
      .def("has_task", has_task,
           nb::sig("def has_task(self, offset: int, task_id: int, /) -> bool"),
           "Say whether a task still waits or runs. False: its memory was freed, by whoever ran it "
           "after its result was sent, or because he died and was buried by `reap`.")
      .def(
          "reserve_parcels",
          [](const PySegment& self) {
            const auto core = self.core.get();
            return run_whole(*core, [&] {
              require_seat(*core);
              Token token = 0;
              return reserve_parcels(*core, token) == Status::kOk ? token : 0;
            });
          },
          "Return a seat for what a process that is about to be started is sent; 0 if none is "
          "left.\n\nWhat is in it, by `Sender.transit` and its like, goes when that process dies.")
      .def(
          "address_parcels",
          [](const PySegment& self, Token parcels, std::uint32_t pid) {
            address_parcels(*self.core, parcels, pid);
          },
          nb::sig("def address_parcels(self, parcels: int, pid: int, /) -> None"),
          "Say which process that is. Until then it is this one.")
      .def(
          "drop_parcels",
          [](const PySegment& self, Token parcels) {
            const auto core = self.core.get();
            run_whole(*core, [&] {
              const WithoutGil released;
              drop_parcels(*core, parcels);
            });
          },
          nb::sig("def drop_parcels(self, parcels: int, /) -> None"),
          "Give up what is in it: nothing was started.")
      .def(
          "reap",
          [](const PySegment& self) {
            const auto core = self.core.get();
            return run_whole(*core, [&] {
              check(core->health());
              const WithoutGil released;
              return reap_all(*core);
            });
          },
          "Bury the processes that died; return how many there were.")
      .def("processes", processes, nb::sig("def processes(self) -> list[dict[str, Any]]"),
           "Return a row for each attached process: slot, token, pid, state, same_namespace, "
           "dead.\n\n"
           "`dead` is proven; such a process waits to be buried by `reap`.")
      .def("stats", stats, nb::sig("def stats(self) -> dict[str, Any]"),
           "Return counts and bytes by state.")
      .def(
          "trim",
          [](const PySegment& self) {
            const auto core = self.core.get();
            require_seat(*core);
            return run_whole(*core, [&] {
              const WithoutGil released;
              ThreadHeap::of(*core).trim();
              steal_empty_slabs(*core);
              return std::uint64_t{RunHeap(*core).give_back(UINT32_MAX)} << kPageShift;
            });
          },
          "Give the memory of all free runs of 2 MiB and more back to the system now.\n\n"
          "By itself a segment gives back what nobody needed for a second, and keeps 32 MiB, "
          "because\nmemory that has to be reserved again is slow.\n\n"
          "Returns:\n    Bytes that were given back.")
      .def(
          "fsck",
          [](const PySegment& self) {
            Census c;
            const auto core = self.core.get();
            run_whole(*core, [&] {
              const WithoutGil released;
              c = take_census(*core, true);
            });
            nb::list out;
            for (const auto& p : c.problems) out.append(nb::str(p.c_str()));
            return out;
          },
          nb::sig("def fsck(self) -> list[str]"),
          "Walk over everything and return what contradicts; [] if sound.\n\n"
          "Exact only while nobody uses the segment.");
  bind_directory(cls);
  bind_static(m, cls);
  bind_atomic(m, cls);
}

}  // namespace ipcbuf::binding
