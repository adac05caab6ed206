// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// ticket.cpp - Python's view of a ticket, and of an array on the move. The work is in
// core/ticket.hpp.
#include "ipcbuf/ticket.hpp"

#include <cstring>

#include "binding.hpp"
#include "ipcbuf/block.hpp"

namespace ipcbuf::binding {

PyTicket::PyTicket(const PyRecord& record) : core_(record.core_pointer()) {
  require_seat(*core_);
  if (!record.is_shareable())
    throw nb::value_error("the record is not in shared memory, or a fork left it to nobody");
  Failure why;
  check(make_ticket(*core_, record.block(), block_, why), why);
  length = record.length();
}

PyTicket::~PyTicket() {
  // Offered ones are left to whoever has the bytes.
  if (block_ != 0 && (beside || !offered_)) (void)free_block(*core_, block_);
}

void PyTicket::offer() noexcept {
  offered_ = true;
  offer_ticket(*core_, block_);
}

std::uint64_t PyTicket::take() noexcept {
  const std::uint64_t block = block_;
  block_ = 0;
  return block;
}

PyTicket* ticket_behind(PyObject* exporter) noexcept {
  if (exporter != nullptr && PyMemoryView_Check(exporter))
    exporter = PyMemoryView_GET_BUFFER(exporter)->obj;
  if (exporter == nullptr || !nb::isinstance<PyTicket>(exporter)) return nullptr;
  return nb::inst_ptr<PyTicket>(exporter);
}

namespace {

// Whoever reads the bytes may open the ticket with them, unless it goes beside them.
int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  const nb::ft_object_guard lock(self);
  auto& ticket = *nb::inst_ptr<PyTicket>(self);
  if (ticket.block() == 0) {
    PyErr_SetString(PyExc_ValueError, "the ticket was sent");
    return -1;
  }
  ticket.offer();
  return PyBuffer_FillInfo(view, self, ticket.text(), sizeof(TicketText), 1, flags);
}

PyType_Slot slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {0, nullptr},
};

/// The record behind a ticket that came with a message, or as bytes.
nb::object open_ticket(nb::handle segment, nb::handle buffer) {
  nb::handle came = buffer;
  if (PyMemoryView_Check(came.ptr())) came = PyMemoryView_GET_BUFFER(came.ptr())->obj;
  if (came.is_valid() && nb::isinstance<PyRecord>(came) && nb::cast<PyRecord&>(came).is_shared())
    return nb::borrow(came);
  struct Buffer {
    Py_buffer b{};
    ~Buffer() { PyBuffer_Release(&b); }
  } view;
  if (PyObject_GetBuffer(buffer.ptr(), &view.b, PyBUF_SIMPLE) != 0) throw nb::python_error();
  if (view.b.len != static_cast<Py_ssize_t>(sizeof(TicketText)))
    throw nb::value_error("these bytes are no ticket");
  TicketText text{};
  std::memcpy(&text, view.b.buf, sizeof text);
  Segment& core = *nb::cast<PySegment&>(segment).core;
  require_seat(core);
  const Status status = adopt_ticket(core, text);
  if (status == Status::kNotFound) {
    const nb::object type = nb::module_::import_("ipcbuf.errors").attr("ClosedError");
    const nb::object error = type(
        "the memory behind this handle is gone: it was opened before, or its sender ended before "
        "it was opened");
    PyErr_SetObject(type.ptr(), error.ptr());
    throw nb::python_error();
  }
  check(status);
  return nb::cast(new PyRecord(nb::borrow(segment), text.offset, sizeof text),
                  nb::rv_policy::take_ownership);
}

}  // namespace

void bind_ticket(nb::module_& m) {
  nb::class_<PyTicket>(m, "Ticket", nb::type_slots(slots),
                       "Keeps the memory of a record alive on its way to another process.\n\n"
                       "As a buffer beside a message of ours it goes with the message. Its bytes "
                       "in any other pickle can be opened once, while the process that made it "
                       "lives.")
      .def("__init__", [](PyTicket* self, const PyRecord& record) { new (self) PyTicket(record); })
      .def_rw("beside", &PyTicket::beside, "True: it goes beside a message, not as bytes.");
  nb::class_<PyMoving>(m, "Moving", "A record that is to be sent without a copy.")
      .def(
          "__init__",
          [](PyMoving* self, nb::object record) {
            if (!nb::isinstance<PyRecord>(record)) throw nb::type_error("Moving needs a Record");
            new (self) PyMoving{std::move(record)};
          },
          nb::sig("def __init__(self, record: Record, /) -> None"))
      .def_prop_ro(
          "record", [](const PyMoving& self) { return self.record; },
          nb::sig("def record(self) -> Record"));
  m.def("open_ticket", open_ticket,
        nb::sig("def open_ticket(segment: Segment, ticket: object, /) -> Record"),
        "Return the record of a ticket that arrived, as a buffer of a message or as bytes.\n\n"
        "Raises:\n    ClosedError: It was opened before, or its sender ended before it was.");
}

}  // namespace ipcbuf::binding
