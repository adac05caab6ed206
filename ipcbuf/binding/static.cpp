// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// static.cpp - Python's view of a static segment. The work is in core/static_area.hpp.
#include "binding.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/static_area.hpp"

namespace ipcbuf::binding {

namespace {

class PyStatic {
 public:
  PyStatic(nb::object s, std::shared_ptr<Segment> c, std::uint32_t i)
      : segment(std::move(s)), core(std::move(c)), id(i) {
    ChannelRow& row = core->channel(index_of(id));
    key = key_to(row.key);
    block = area_block(*core, row);
    length = area_length(*core, row);
  }
  PyStatic(const PyStatic&) = delete;
  PyStatic& operator=(const PyStatic&) = delete;
  ~PyStatic() { let_go(); }

  void require_open() const {
    if (closed) raise_status(Status::kClosed);
    if (block == 0) raise_status(Status::kCorrupted);
  }
  void close() {
    if (exports > 0) throw nb::buffer_error("views of this static segment still exist");
    let_go();
  }

  nb::object segment;
  std::shared_ptr<Segment> core;
  nb::object key;
  const std::uint32_t id;
  std::uint64_t block = 0;
  std::uint64_t length = 0;
  Py_ssize_t exports = 0;
  bool closed = false;

 private:
  void let_go() {
    if (closed) return;
    closed = true;
    core->remove_endpoint(id, End::kSender);
  }
};

/// A view pins the object, and so the memory. No view outlives `close`.
int get_buffer(PyObject* self, Py_buffer* view, int flags) noexcept {
  const nb::ft_object_guard lock(self);
  auto& area = *nb::inst_ptr<PyStatic>(self);
  if (area.closed || area.block == 0) {
    PyErr_SetString(PyExc_ValueError, "the static segment was closed here");
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, area.core->payload(area.block),
                        static_cast<Py_ssize_t>(area.length), 0, flags) < 0)
    return -1;
  ++area.exports;
  return 0;
}

void release_buffer(PyObject* self, Py_buffer*) noexcept {
  const nb::ft_object_guard lock(self);
  --nb::inst_ptr<PyStatic>(self)->exports;
}

PyType_Slot slots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(release_buffer)},
    {0, nullptr},
};

nb::object open_area(nb::handle self, nb::handle key, std::int64_t nbytes, nb::handle init) {
  if (nbytes <= 0) {
    const std::string text = "nbytes must be positive, not " + std::to_string(nbytes);
    throw nb::value_error(text.c_str());
  }
  if (!init.is_none() && PyCallable_Check(init.ptr()) == 0)
    throw nb::type_error("init must be a function of one memoryview, or None");
  JoinRequest request;
  request.type = ChannelType::kStatic;
  request.length = static_cast<std::uint64_t>(nbytes);
  const auto core = nb::cast<PySegment&>(self).core.get();
  const std::uint32_t id = join(*core, key, request);
  nb::object out =
      nb::cast(new PyStatic(nb::borrow(self), core, id), nb::rv_policy::take_ownership);
  const Status turn = run_sliced([&] { return begin_init_slice(*core, id, !init.is_none()); });
  if (turn == Status::kOk) return out;
  if (turn != Status::kEmpty) check(turn);
  // Ours to run, with the GIL. Whatever ends it ends the lock.
  struct Turn {
    Segment& s;
    std::uint32_t id;
    bool done = false;
    ~Turn() { end_init(s, id, done); }
  } mine{*core, id};
  const nb::object view = nb::steal(PyMemoryView_FromObject(out.ptr()));
  if (!view.is_valid()) throw nb::python_error();
  init(view);
  mine.done = true;
  return out;
}

}  // namespace

void bind_static(nb::module_& m, nb::class_<PySegment>& segment) {
  nb::class_<PyStatic>(
      m, "Static", nb::type_slots(slots), nb::is_weak_referenceable(),
      "Memory with a key that any number of processes share: a writable buffer.\n\n"
      "`Segment.static` makes it. Use it through `memoryview` or "
      "`numpy.frombuffer`. It is freed when the last process that has it closes "
      "it, drops it or dies.")
      .def_prop_ro(
          "nbytes", [](const PyStatic& a) { return a.length; },
          "Length in bytes, exactly as asked.")
      .def_prop_ro(
          "key", [](const PyStatic& a) { return a.key; }, nb::sig("def key(self) -> int | str"))
      .def_prop_ro("closed", [](const PyStatic& a) { return a.closed; })
      .def_prop_ro("channel_id", [](const PyStatic& a) { return a.id; })
      .def_prop_ro(
          "segment", [](const PyStatic& a) { return a.segment; },
          nb::sig("def segment(self) -> Segment"))
      .def("__len__", [](const PyStatic& a) { return a.length; })
      .def(
          "transit",
          [](const PyStatic& a, Token parcels) {
            a.require_open();
            require_seat(*a.core);
            check_hold(*a.core, hold_in_transit(*a.core, a.id, End::kSender, parcels));
            return parcels != 0 ? parcels : a.core->token();
          },
          nb::arg("parcels") = 0, nb::sig("def transit(self, parcels: int = 0, /) -> int"),
          "Keep the memory alive for a handle on its way, as `Sender.transit`; `open_static` takes "
          "what this returns.")
      .def("close", &PyStatic::close, nb::lock_self(),
           "Let go of the memory. Twice is allowed.\n\n"
           "Raises:\n    BufferError: Views of it still exist.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Static"))
      .def(
          "__exit__", [](PyStatic& self, nb::args) { self.close(); }, nb::lock_self(),
          nb::sig("def __exit__(self, *args: object) -> None"));

  segment
      .def("static", open_area, nb::arg(), nb::arg(), nb::arg("init") = nb::none(),
           nb::sig("def static(self, key: int | str, nbytes: int, /, "
                   "init: Callable[[memoryview], object] | None = None) -> Static"),
           "Return the memory of that key, made of *nbytes* zeros if need be.\n\n"
           "Args:\n"
           "    key: An int of 64 bits, or a str of 1 to 60 bytes of UTF-8.\n"
           "    nbytes: Its length; all who share it must say the same.\n"
           "    init: Runs once, however many come at the same time; the others wait for it. If "
           "its process dies or it raises, the memory is zeroed and the next comer's runs. Who "
           "comes without one gets the memory as it is, but waits for one that runs.\n\n"
           "Raises:\n"
           "    ValueError: The key has another length or type.\n"
           "    HeapExhausted: The segment has no room, with the numbers.")
      .def(
          "open_static",
          [](nb::handle self, std::uint32_t id, std::uint32_t transit) {
            const auto core = nb::cast<PySegment&>(self).core.get();
            require_seat(*core);
            check_hold(*core, open_channel(*core, id, End::kSender, transit, ChannelType::kStatic));
            return nb::cast(new PyStatic(nb::borrow(self), core, id),
                            nb::rv_policy::take_ownership);
          },
          nb::arg(), nb::arg() = 0,
          nb::sig("def open_static(self, channel_id: int, transit: int = 0, /) -> Static"),
          "Open a static segment that came with a handle.");
}

}  // namespace ipcbuf::binding
