// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// record.cpp - Python's view of a block. The work is in core/block.hpp.
#include <cstring>
#include <utility>

#include "binding.hpp"
#include "ipcbuf/block.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf::binding {

PyRecord::PyRecord(nb::object segment, std::uint64_t block, std::uint64_t length)
    : segment_(std::move(segment)), core_(nb::cast<PySegment&>(segment_).core), length_(length) {
  std::uint64_t shown = block;
  behind_ticket_ = is_ticket(*core_, block);
  if (behind_ticket_) check(read_ticket(*core_, block, shown, length_));
  put_back(block);
  data_ = core_->payload(shown);
}

PyRecord::PyRecord(nb::object segment, const void* bytes, std::size_t length)
    : segment_(std::move(segment)),
      core_(nb::cast<PySegment&>(segment_).core),
      length_(length),
      own_(new std::byte[length + 1]) {
  std::memcpy(own_.get(), bytes, length);
  data_ = own_.get();
}

void PyRecord::free() noexcept {
  data_ = nullptr;
  own_.reset();
  if (view_.block == 0) return;
  core_->remove_view(view_);
  if (!view_.pinned) (void)drop_block(*core_, view_.block);
  view_.block = 0;
}

void PyRecord::require_no_views() const {
  if (exports > 0) throw nb::buffer_error("views of this record still exist");
  if (is_released()) throw nb::value_error("the record was released or sent");
}

void PyRecord::release() {
  if (is_released()) return;
  require_no_views();
  free();
}

bool PyRecord::is_movable() const {
  BlockPlace place{};
  Holder holder{};
  return is_shareable() && core_->place(view_.block, place) && read_holder(*core_, place, holder) &&
         holder == by_process(core_->token());
}

std::uint64_t PyRecord::take() {
  require_no_views();
  core_->remove_view(view_);
  const std::uint64_t block = view_.block;
  view_.block = 0;
  sent_ = std::exchange(data_, nullptr);
  return block;
}

void PyRecord::put_back(std::uint64_t block) {
  view_.block = block;
  data_ = sent_;
  core_->add_view(view_);
}

namespace {

// A live view pins the record, as it pins an mmap or a bytearray.
int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  const nb::ft_object_guard lock(self);
  auto& record = *nb::inst_ptr<PyRecord>(self);
  if (record.is_released()) {
    PyErr_SetString(PyExc_ValueError, "the record was released or sent");
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, record.data(), static_cast<Py_ssize_t>(record.length()), 0,
                        flags) < 0)
    return -1;
  ++record.exports;
  return 0;
}

void release_buffer(PyObject* self, Py_buffer*) noexcept {
  const nb::ft_object_guard lock(self);
  --nb::inst_ptr<PyRecord>(self)->exports;
}

PyType_Slot slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
    {0, nullptr},
};

}  // namespace

void bind_record(nb::module_& m) {
  nb::class_<PyRecord>(m, "Record", nb::type_slots(slots),
                       "A writable block of the segment's heap, with the buffer protocol.\n\n"
                       "`Segment.allocate` and `Receiver.recv_view` make it. Its memory is freed "
                       "with the last reference to it or to any view of it.")
      .def_prop_ro(
          "nbytes", [](const PyRecord& r) { return r.length(); },
          "Length in bytes, exactly as allocated or sent.")
      .def_prop_ro(
          "segment", [](const PyRecord& r) { return r.segment(); },
          nb::sig("def segment(self) -> Segment"), "The segment whose heap it is in.")
      .def_prop_ro(
          "address", [](const PyRecord& r) { return reinterpret_cast<std::uintptr_t>(r.data()); },
          "Where its first byte is in this process.")
      .def_prop_ro("shareable", &PyRecord::is_shareable,
                   "Whether other processes can have its memory: not of a small message's.")
      .def("__len__", [](const PyRecord& r) { return r.length(); })
      .def("release", &PyRecord::release, nb::lock_self(),
           "Free the memory now.\n\nRaises:\n    BufferError: Views of the record still exist.");
}

}  // namespace ipcbuf::binding
