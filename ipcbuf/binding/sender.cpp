// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// sender.cpp - Python's view of a sending end. The work is in core/channel.hpp.
#include "binding.hpp"
#include "ipcbuf/block.hpp"

namespace ipcbuf::binding {

namespace {

void send_record(PySender& self, PyRecord& record, std::int64_t until) {
  record.require_no_views();
  Outgoing m;
  m.kind = RecordKind::kRaw;
  const bool leased = self.end.is_leased();
  if (record.is_private() && record.length() <= kMaxInline && !leased) {
    m.payload = record.data();
    m.payload_size = static_cast<std::uint32_t>(record.length());
    send(self, m, until);
    record.release();
    return;
  }
  m.payload_in_block = true;
  if (&record.core() != self.core.get() || !record.is_movable() || (leased && record.is_shared())) {
    // Of another segment, or shared with a child since a fork: its bytes can only be copied.
    Blocks blocks(*self.core);
    blocks.add(m, record.data(), record.length());
    send(self, m, until);
    blocks.sent();
    record.release();
    return;
  }
  m.block_count = 1;
  m.blocks[0] = {record.block(), record.length()};
  // The block leaves the object first: a receiver may free it before `send` returns.
  const std::uint64_t block = record.take();
  try {
    send(self, m, until);
  } catch (...) {
    record.put_back(block);
    throw;
  }
}

void send_moving(PySender& self, const PyMoving& moving, std::int64_t until) {
  if (self.end.is_leased()) refuse_leased();
  const auto& record = nb::cast<const PyRecord&>(moving.record);
  if (&record.core() != self.core.get())
    throw nb::value_error(
        "the array is in another segment than the channel; make it there: "
        "ipcbuf.empty(..., segment=sender.segment)");
  PyTicket ticket(record);
  Outgoing m;
  m.kind = RecordKind::kRaw;
  m.payload_in_block = true;
  Blocks blocks(*self.core);
  blocks.add(m, ticket);
  send(self, m, until);
  blocks.sent();
}

void send_data(PySender& self, nb::handle data, nb::handle timeout) {
  const std::int64_t until = until_of(timeout);
  require_seat(*self.core);
  if (nb::isinstance<PyRecord>(data)) {
    send_record(self, nb::cast<PyRecord&>(data), until);
    return;
  }
  if (nb::isinstance<PyMoving>(data)) {
    send_moving(self, nb::cast<const PyMoving&>(data), until);
    return;
  }
  struct Buffer {
    Py_buffer b{};
    ~Buffer() { PyBuffer_Release(&b); }
  } view;
  if (PyObject_GetBuffer(data.ptr(), &view.b, PyBUF_SIMPLE) != 0) throw nb::python_error();
  Outgoing m;
  m.kind = RecordKind::kRaw;
  const auto size = static_cast<std::size_t>(view.b.len);
  Blocks blocks(*self.core);
  if (size <= kMaxInline && !self.end.is_leased()) {
    m.payload = view.b.buf;
    m.payload_size = static_cast<std::uint32_t>(size);
  } else {
    blocks.add(m, view.b.buf, size);
    m.payload_in_block = true;
  }
  send(self, m, until);
  blocks.sent();
}

std::uint64_t send_task(PySender& self, nb::handle object, std::uint64_t task_id) {
  require_seat(*self.core);
  if (self.end.is_leased()) throw nb::value_error("tasks do not go through a leased channel");
  Encoded e;
  encode(object.ptr(), e);
  Outgoing m;
  Blocks blocks(*self.core);
  const std::uint64_t offset = blocks.add(m, e.payload, e.size);
  // The state goes out with the message (P1 of core/ring.hpp).
  Atomics::store_relaxed(self.core->block(offset).state,
                         task_id << 2 | static_cast<std::uint64_t>(TaskState::kPending));
  blocks.add_buffers(m, e.buffers);
  struct {
    std::uint64_t task_id;
    std::uint8_t kind;
    std::uint8_t tag;
  } const head{task_id, static_cast<std::uint8_t>(e.kind), e.tag};
  m.kind = RecordKind::kTask;
  m.payload_in_block = true;
  m.payload = &head;
  m.payload_size = sizeof head;
  send(self, m, until_of(nb::none()));
  blocks.sent();
  return offset;
}

void send_any(PySender& self, nb::handle object, nb::handle timeout) {
  require_seat(*self.core);
  send_object(self, object.ptr(), until_of(timeout));
}

std::uint32_t pending(PySender& self) { return self.end.pending(); }

int fileno(PySender& self) {
  require_seat(*self.core);
  return descriptor_of(self.end);
}

bool has_room(PySender& self) { return self.end.has_room(); }
std::uint64_t receiver_count(PySender& self) { return peers(self, End::kReceiver); }
bool has_receivers(PySender& self) { return receiver_count(self) != 0; }

Token transit(PySender& self, Token parcels) {
  require_seat(*self.core);
  check_hold(*self.core, hold_in_transit(*self.core, self.end.id(), End::kSender, parcels));
  return parcels != 0 ? parcels : self.core->token();
}

}  // namespace

void bind_sender(nb::module_& m) {
  nb::class_<PySender>(m, "Sender", nb::is_weak_referenceable(),
                       "The sending end of a channel.\n\n"
                       "`Segment.channel` makes it. An exclusive end (shared=False) belongs to the "
                       "first process that uses it, one thread at a time. It ends with `close()`, "
                       "with its last reference, or with the process.")
      .def("send", whole<send_data>, nb::arg(), nb::arg("timeout") = nb::none(),
           nb::sig("def send(self, data: Buffer | Record | Moving, /, "
                   "timeout: float | None = None) -> None"),
           "Send bytes, or move a record, waiting up to *timeout* seconds for room.\n\n"
           "A record is sent without a copy and is released here; so is `ipcbuf.move(array)`, "
           "which\nstays readable here.\n\n"
           "Raises:\n    BufferError: Views of the record still exist.\n"
           "    ChannelFull: There was no room in time.\n"
           "    BrokenChannel: Nobody is left who could receive.\n"
           "    ClosedError: This end was closed here.\n"
           "    BusyError: The end is exclusive and has another user.\n"
           "    HeapExhausted: The segment has no room, with the numbers.")
      .def("send_object", whole<send_any>, nb::arg().none(), nb::arg("timeout") = nb::none(),
           nb::sig("def send_object(self, obj: object, /, timeout: float | None = None) -> None"),
           "Send an object, as `send`. What its pickling raises is raised here.")
      .def(
          "asend",
          [](nb::handle self, nb::handle data, nb::handle timeout) {
            return in_event_loop("asend", self, data, timeout);
          },
          nb::arg(), nb::arg("timeout") = nb::none(),
          nb::sig("def asend(self, data: Buffer | Record, /, timeout: float | None = None) -> "
                  "Coroutine[Any, Any, None]"),
          "Send as `send`, for `await` in an asyncio event loop.\n\n"
          "Tasks of a loop are served in the order in which they came. A cancelled one has sent\n"
          "nothing. The data must not change until then.")
      .def(
          "asend_object",
          [](nb::handle self, nb::handle object, nb::handle timeout) {
            return in_event_loop("asend_object", self, object, timeout);
          },
          nb::arg().none(), nb::arg("timeout") = nb::none(),
          nb::sig("def asend_object(self, obj: object, /, timeout: float | None = None) -> "
                  "Coroutine[Any, Any, None]"),
          "Send an object as `send_object`, for `await`; see `asend`.")
      .def("send_task", whole<send_task>, nb::arg().none(), nb::arg(),
           nb::sig("def send_task(self, obj: object, task_id: int, /) -> int"),
           "Send an object as a task that can be cancelled until it is received.\n\n"
           "Returns:\n    What `Segment.cancel_task` needs beside the task's id.")
      .def("pending", whole<pending>, "Return how many messages are in the channel.")
      .def("fileno", whole<fileno>,
           "Return a descriptor that is readable while there is room, or nobody to receive.\n\n"
           "After a refused send, room means room for that message. Else as `Receiver.fileno`.")
      .def("has_room", whole<has_room>, "Say whether a small message would find room now.")
      .def_prop_ro("receiver_count", whole<receiver_count>,
                   "How many handles of the receiving end living processes have, those on their "
                   "way included.")
      .def("has_receivers", whole<has_receivers>,
           "Say whether a living process has the receiving end.")
      .def("transit", whole<transit>, nb::arg("parcels") = 0,
           nb::sig("def transit(self, parcels: int = 0, /) -> int"),
           "Keep the channel alive for a handle on its way, among *parcels* of "
           "`reserve_parcels` if it goes to a new process; `open_sender` takes what this returns.")
      .def(
          "close", [](PySender& self) { self.end.close(); },
          "Give the end up. The last one closes it for the receiver. Twice is allowed.")
      .def_prop_ro("closed", [](const PySender& self) { return self.end.is_closed(); })
      .def_prop_ro("channel_id", [](const PySender& self) { return self.end.id(); })
      .def_prop_ro("leased", [](const PySender& self) { return self.end.is_leased(); })
      .def_prop_ro("shared", [](const PySender& self) { return self.end.is_shared(); })
      .def_prop_ro(
          "segment", [](const PySender& self) { return self.segment; },
          nb::sig("def segment(self) -> Segment"))
      .def_prop_rw(
          "bell_fd", [](const PySender& self) { return self.end.bell_fd(); },
          [](PySender& self, int fd) { self.end.set_bell_fd(fd); },
          "The descriptor that rings the receiver, borrowed; -1 if there is none.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Sender"))
      .def(
          "__exit__", [](PySender& self, nb::args) { self.end.close(); },
          nb::sig("def __exit__(self, *args: object) -> None"));
}

}  // namespace ipcbuf::binding
