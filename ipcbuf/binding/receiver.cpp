// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// receiver.cpp - Python's view of a receiving end. The work is in core/channel.hpp.
#include <cstring>

#include "binding.hpp"
#include "ipcbuf/block.hpp"

namespace ipcbuf::binding {

namespace {

nb::object recv_bytes(PyReceiver& self, nb::handle timeout) {
  require_seat(*self.core);
  Incoming m;
  receive(self, m, until_of(timeout));
  return as_bytes(self.segment, *self.core, m);
}

nb::object recv_object(PyReceiver& self, nb::handle timeout) {
  require_seat(*self.core);
  Incoming m;
  receive(self, m, until_of(timeout));
  return decode_any(self.segment, *self.core, m, self.copies);
}

PyRecord* recv_view(PyReceiver& self, nb::handle timeout) {
  require_seat(*self.core);
  Incoming m;
  receive(self, m, until_of(timeout));
  if (m.kind == RecordKind::kRaw && m.payload_in_block) {
    if (m.lease != 0) end_lease(*self.core, m.blocks[0].offset);
    return new PyRecord(self.segment, m.blocks[0].offset, m.blocks[0].length);
  }
  // The message is taken, so nothing that may be refused comes now: no room in the heap either.
  if (m.kind == RecordKind::kRaw) return new PyRecord(self.segment, m.payload, m.payload_size);
  const nb::object whole = as_bytes(self.segment, *self.core, m);
  return new PyRecord(self.segment, PyBytes_AS_STRING(whole.ptr()),
                      static_cast<std::size_t>(PyBytes_GET_SIZE(whole.ptr())));
}

PyLeased* recv_leased(PyReceiver& self, nb::handle timeout) {
  if (!self.end.is_leased())
    throw nb::value_error("the channel has no leases; make it with lease=True");
  require_seat(*self.core);
  Incoming m;
  receive(self, m, until_of(timeout));
  return new PyLeased(self.segment, m);
}

bool poll(PyReceiver& self, nb::handle timeout) {
  require_seat(*self.core);
  const std::int64_t until = until_of(timeout);
  const Status status =
      wait_for(self.end, [&](Wait& wait) { return self.end.poll_slice(until, wait); });
  if (status == Status::kOk) return true;
  if (status == Status::kEmpty) return false;
  raise_status(status);
}

/// Starts the oldest task nobody cancelled.
PyTask* recv_task(PyReceiver& self, nb::handle timeout) {
  require_seat(*self.core);
  const std::int64_t until = until_of(timeout);
  for (;;) {
    Incoming m;
    receive(self, m, until);
    if (m.kind != RecordKind::kTask || m.payload_size < 10) {
      drop_message(*self.core, m);
      throw nb::value_error("the message is not a task");
    }
    std::uint64_t task_id = 0;
    std::memcpy(&task_id, m.payload, sizeof task_id);
    std::uint64_t pending = task_id << 2 | static_cast<std::uint64_t>(TaskState::kPending);
    if (Atomics::compare_exchange(self.core->block(m.blocks[0].offset).state, pending,
                                  task_id << 2 | static_cast<std::uint64_t>(TaskState::kRunning)))
      return new PyTask(self.segment, m, task_id);
    drop_message(*self.core, m);  // cancelled while it was on its way
  }
}

std::uint32_t pending(PyReceiver& self) { return self.end.pending(); }

int fileno(PyReceiver& self) {
  require_seat(*self.core);
  if (self.end.is_closed()) raise_status(Status::kClosed);
  const Status status = run_sliced([&] {
    const Status armed = self.end.arm();
    return armed == Status::kContended ? Status::kSlice : armed;
  });
  return status == Status::kOk ? self.end.bell_fd() : descriptor_of(self.end);
}

bool has_data(PyReceiver& self) { return self.end.pending() != 0; }
std::uint64_t sender_count(PyReceiver& self) { return peers(self, End::kSender); }
bool has_senders(PyReceiver& self) { return sender_count(self) != 0; }

Token transit(PyReceiver& self, Token parcels) {
  require_seat(*self.core);
  check_hold(*self.core, hold_in_transit(*self.core, self.end.id(), End::kReceiver, parcels));
  return parcels != 0 ? parcels : self.core->token();
}

}  // namespace

void bind_receiver(nb::module_& m) {
  nb::class_<PyReceiver>(m, "Receiver", nb::is_weak_referenceable(),
                         "The receiving end of a channel.\n\n"
                         "`Segment.channel` makes it. An exclusive end (shared=False) belongs to "
                         "the first process that uses it, one thread at a time. Iterating, with "
                         "`for` or `async for`, yields bytes until the channel ends.")
      .def("recv", whole<recv_bytes>, nb::arg("timeout") = nb::none(),
           nb::sig("def recv(self, timeout: float | None = None) -> bytes"),
           "Return the oldest message as bytes, waiting up to *timeout* seconds.\n\n"
           "The bytes are a copy, so they outlive the channel; `recv_view()` copies nothing.\n\n"
           "Raises:\n    ChannelEmpty: Nothing came in time.\n"
           "    EndOfChannel: Every sender is gone and everything was received.\n"
           "    BrokenChannel: The sender died. What it had published was returned first.")
      .def("recv_view", whole<recv_view>, nb::arg("timeout") = nb::none(),
           nb::rv_policy::take_ownership,
           nb::sig("def recv_view(self, timeout: float | None = None) -> Record"),
           "Return the oldest message as a record that owns its memory, as `recv`.")
      .def(
          "recv_bytes", [](PyReceiver& self) { return whole<recv_bytes>(self, nb::none()); },
          nb::sig("def recv_bytes(self) -> bytes"),
          "Return the oldest message as bytes; of an object, its pickle.")
      .def("recv_object", whole<recv_object>, nb::arg("timeout") = nb::none(),
           nb::sig("def recv_object(self, timeout: float | None = None) -> Any"),
           "Return the oldest message as an object, as `recv`.\n\n"
           "What its unpickling raises is raised here; the message is gone then.")
      .def("recv_leased", whole<recv_leased>, nb::arg("timeout") = nb::none(),
           nb::rv_policy::take_ownership,
           nb::sig("def recv_leased(self, timeout: float | None = None) -> Leased"),
           "Take the oldest message of a leased channel until it is done, as `recv`.\n\n"
           "If this process dies first, the message is delivered again. `EndOfChannel` is raised "
           "only when no other process has a message it may not finish.\n\n"
           "Raises:\n    ValueError: The channel was not made with lease=True.")
      .def(
          "arecv",
          [](nb::handle self, nb::handle timeout) { return in_event_loop("arecv", self, timeout); },
          nb::arg("timeout") = nb::none(),
          nb::sig("def arecv(self, timeout: float | None = None) -> Coroutine[Any, Any, bytes]"),
          "Return the oldest message as `recv`, for `await` in an asyncio event loop.\n\n"
          "Tasks of a loop are served in the order in which they came. A cancelled one has taken\n"
          "no message. The loop watches `fileno()`, so do not add a reader for it beside.")
      .def(
          "arecv_view",
          [](nb::handle self, nb::handle timeout) {
            return in_event_loop("arecv_view", self, timeout);
          },
          nb::arg("timeout") = nb::none(),
          nb::sig(
              "def arecv_view(self, timeout: float | None = None) -> Coroutine[Any, Any, Record]"),
          "Return the oldest message as `recv_view`, for `await`; see `arecv`.")
      .def(
          "arecv_object",
          [](nb::handle self, nb::handle timeout) {
            return in_event_loop("arecv_object", self, timeout);
          },
          nb::arg("timeout") = nb::none(),
          nb::sig(
              "def arecv_object(self, timeout: float | None = None) -> Coroutine[Any, Any, Any]"),
          "Return the oldest message as `recv_object`, for `await`; see `arecv`.")
      .def(
          "arecv_leased",
          [](nb::handle self, nb::handle timeout) {
            return in_event_loop("arecv_leased", self, timeout);
          },
          nb::arg("timeout") = nb::none(),
          nb::sig("def arecv_leased(self, timeout: float | None = None) -> Coroutine[Any, Any, "
                  "Leased]"),
          "Take the oldest message as `recv_leased`, for `await`; see `arecv`.")
      .def("recv_task", whole<recv_task>, nb::arg("timeout") = nb::none(),
           nb::rv_policy::take_ownership,
           nb::sig("def recv_task(self, timeout: float | None = None) -> Task"),
           "Start and return the oldest task that was not cancelled.")
      .def("poll", whole<poll>, nb::arg("timeout").none() = 0.0,
           nb::sig("def poll(self, timeout: float | None = 0.0) -> bool"),
           "Say whether a message, or the end, is there within *timeout* seconds. Takes nothing.")
      .def("pending", whole<pending>, "Return how many messages are in the channel.")
      .def("has_data", whole<has_data>, "Say whether a message is in the channel.")
      .def_prop_ro(
          "sender_count", whole<sender_count>,
          "How many handles of the sending end living processes have, those on their way included.")
      .def("has_senders", whole<has_senders>, "Say whether a living process has the sending end.")
      .def("fileno", whole<fileno>,
           "Return a descriptor that is readable while a message, or the end, is there.\n\n"
           "It is for select, poll and event loops, borrowed, and stays valid until the object\n"
           "goes, in a forked child too. It may read ready although another process was faster,\n"
           "so receive with `timeout=0` behind it. A channel that has no descriptor of its own\n"
           "gets one, and this process a thread that makes it readable.\n\n"
           "Raises:\n    ClosedError: This end was closed here.\n"
           "    SegmentError: The system refused a descriptor or a thread.")
      .def(
          "transit", whole<transit>, nb::arg("parcels") = 0,
          nb::sig("def transit(self, parcels: int = 0, /) -> int"),
          "Keep the channel alive for a handle on its way, among *parcels* of "
          "`reserve_parcels` if it goes to a new process; `open_receiver` takes what this returns.")
      .def(
          "close", [](PyReceiver& self) { self.end.close(); },
          "Give the end up. The last one closes it for the sender. Twice is allowed.")
      .def_prop_ro("closed", [](const PyReceiver& self) { return self.end.is_closed(); })
      .def_prop_ro("channel_id", [](const PyReceiver& self) { return self.end.id(); })
      .def_prop_ro("leased", [](const PyReceiver& self) { return self.end.is_leased(); })
      .def_prop_ro("shared", [](const PyReceiver& self) { return self.end.is_shared(); })
      .def_prop_ro(
          "segment", [](const PyReceiver& self) { return self.segment; },
          nb::sig("def segment(self) -> Segment"))
      .def_prop_rw(
          "bell_fd", [](const PyReceiver& self) { return self.end.bell_fd(); },
          [](PyReceiver& self, int fd) { self.end.set_bell_fd(fd); },
          "The descriptor that `fileno` returns, borrowed; -1 if there is none.")
      .def_rw("copies", &PyReceiver::copies,
              "Whether the large buffers of objects come in private memory, and not as views of "
              "the segment.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Receiver"))
      .def(
          "__exit__", [](PyReceiver& self, nb::args) { self.end.close(); },
          nb::sig("def __exit__(self, *args: object) -> None"))
      .def(
          "__iter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __iter__(self) -> Receiver"))
      .def(
          "__aiter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __aiter__(self) -> Receiver"))
      .def(
          "__anext__", [](nb::handle self) { return in_event_loop("anext_message", self); },
          nb::sig("def __anext__(self) -> Coroutine[Any, Any, bytes]"))
      .def(
          "__next__",
          [](PyReceiver& self) {
            try {
              return whole<recv_bytes>(self, nb::none());
            } catch (nb::python_error& error) {
              if (!error.matches(nb::module_::import_("ipcbuf.errors").attr("EndOfChannel"))) throw;
            }
            throw nb::stop_iteration();
          },
          nb::sig("def __next__(self) -> bytes"));
}

}  // namespace ipcbuf::binding
