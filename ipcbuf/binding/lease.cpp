// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// lease.cpp - Python's view of a message that is taken and not yet done. See core/lease.hpp.
#include "binding.hpp"
#include "ipcbuf/block.hpp"

namespace ipcbuf::binding {

PyLeased::PyLeased(nb::object segment, const Incoming& m)
    : is_redelivered(m.is_redelivered),
      segment_(std::move(segment)),
      core_(nb::cast<PySegment&>(segment_).core),
      length_(m.blocks[0].length),
      lease_(Lease::unpack(m.lease)),
      token_(core_->token()) {
  view_.block = m.blocks[0].offset;
  view_.own = true;
  core_->add_view(view_);
}

PyLeased::~PyLeased() {
  if (view_.block == 0) return;
  if (is_ours()) {
    let_go();
    return;
  }
  core_->remove_view(view_);
  if (!view_.pinned) (void)drop_block(*core_, view_.block);  // a child's share of it
}

bool PyLeased::is_ours() const { return !view_.pinned && token_ == core_->token(); }

void PyLeased::require_ours() const {
  if (view_.block == 0 || !is_ours())
    throw nb::value_error("the lease has ended, or belongs to the process that received it");
}

/// The block leaves us: freed if the lease was ended, else back to its channel.
void PyLeased::let_go() noexcept {
  core_->remove_view(view_);
  const std::uint64_t block = view_.block;
  view_.block = 0;
  if (view_.pinned) return;
  const Holder me = by_process(core_->token());
  BlockPlace place{};
  Holder holder{};
  const bool is_alone =
      core_->place(block, place) && read_holder(*core_, place, holder) && holder == me;
  const bool is_done = Atomics::load_relaxed(core_->block(block).lease) == 0;
  if (is_alone && !is_done) {
    (void)hand_back(*core_, block, me);
  } else {
    (void)drop_block(*core_, block);  // of a shared one the last holder decides
  }
}

void PyLeased::done() {
  if (is_over()) return;
  require_ours();
  over_ = true;
  end_lease(*core_, view_.block);
  if (exports_ == 0) let_go();
}

void PyLeased::give_back() {
  if (is_over()) return;
  require_ours();
  over_ = true;
  if (exports_ == 0) let_go();
}

void PyLeased::add_export() {
  const std::lock_guard lock(core_->mutex());
  ++exports_;
  view_.own = false;  // a child may look at it from now on, too
}

void PyLeased::drop_export() {
  {
    const std::lock_guard lock(core_->mutex());
    if (--exports_ != 0) return;
    view_.own = is_ours();
  }
  if (over_ && view_.block != 0 && is_ours()) let_go();
}

bool PyLeased::look(const std::byte*& bytes, Py_ssize_t& length) const {
  if (is_over()) {
    PyErr_SetString(PyExc_ValueError, "the lease has ended");
    return false;
  }
  if (static_cast<RecordKind>(lease_.kind) != RecordKind::kRaw) {
    PyErr_SetString(PyExc_ValueError, "an object was sent, not bytes; use load()");
    return false;
  }
  bytes = core_->payload(view_.block);
  length = static_cast<Py_ssize_t>(length_);
  return true;
}

nb::object PyLeased::load() const {
  if (over_) throw nb::value_error("the lease has ended");
  require_ours();
  return run_whole(*core_,
                   [this] { return decode_leased(lease_, core_->payload(view_.block), length_); });
}

namespace {

int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  const nb::ft_object_guard lock(self);
  auto& leased = *nb::inst_ptr<PyLeased>(self);
  const std::byte* bytes = nullptr;
  Py_ssize_t length = 0;
  if (!leased.look(bytes, length)) return -1;
  // Read-only: who gets the message next must get what was sent.
  if (PyBuffer_FillInfo(view, self, const_cast<std::byte*>(bytes), length, 1, flags) < 0) return -1;
  leased.add_export();
  return 0;
}

void release_buffer(PyObject* self, Py_buffer*) noexcept {
  const nb::ft_object_guard lock(self);
  nb::inst_ptr<PyLeased>(self)->drop_export();
}

PyType_Slot slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
    {0, nullptr},
};

}  // namespace

void bind_lease(nb::module_& m) {
  nb::class_<PyLeased>(
      m, "Leased", nb::type_slots(slots),
      "A message that this process has taken and not yet finished.\n\n"
      "`Receiver.recv_leased` makes it. It is delivered again, to whoever receives next, if this "
      "process dies, gives it back, or lets go of it without `done()`. As a context manager it is "
      "done at the end of the block, and given back if that raises.\n\n"
      "A child made by fork has no part in it.")
      .def_prop_ro(
          "data",
          [](nb::handle self) {
            PyObject* const view = PyMemoryView_FromObject(self.ptr());
            if (view == nullptr) throw nb::python_error();
            return nb::steal(view);
          },
          nb::sig("def data(self) -> memoryview"),
          "The bytes that were sent, read-only and not copied. While it lives, the memory does; "
          "a message that is given back goes when it is gone.")
      .def("load", &PyLeased::load, nb::lock_self(), nb::sig("def load(self) -> Any"),
           "Return the object that was sent, made from a copy: it outlives the lease.\n\n"
           "What its unpickling raises is raised here; the lease goes on.")
      .def("done", &PyLeased::done, nb::lock_self(),
           "End the lease: the message will not be delivered again. Twice is allowed.\n\n"
           "Raises:\n    ValueError: It is the parent's, from before a fork.")
      .def("give_back", &PyLeased::give_back, nb::lock_self(),
           "Put the message back for whoever receives next, before all younger ones.")
      .def_prop_ro(
          "ended", [](const PyLeased& l) { return l.is_over(); },
          "Whether it was done, or given back.")
      .def_prop_ro(
          "redelivered", [](const PyLeased& l) { return l.is_redelivered; },
          "Whether somebody had taken it before and did not finish it.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Leased"))
      .def(
          "__exit__",
          [](PyLeased& self, nb::handle type, nb::handle, nb::handle) {
            type.is_none() ? self.done() : self.give_back();
          },
          nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::lock_self(),
          nb::sig("def __exit__(self, type: object, value: object, traceback: object, /) -> None"));
}

}  // namespace ipcbuf::binding
