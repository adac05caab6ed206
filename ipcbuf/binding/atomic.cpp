// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// atomic.cpp - Python's view of an atomic cell. The work is in core/atomic_cell.hpp.
#include <climits>

#include "binding.hpp"
#include "ipcbuf/atomic_cell.hpp"
#include "ipcbuf/directory.hpp"

namespace ipcbuf::binding {

namespace {

struct PyAtomic {
  nb::object segment;
  std::shared_ptr<Segment> core;
  nb::object key;
  AtomicCell cell;
  PyAtomic(nb::object s, std::shared_ptr<Segment> c, std::uint32_t id)
      : segment(std::move(s)),
        core(std::move(c)),
        key(key_to(core->channel(index_of(id)).key)),
        cell(*core, id) {}
};

/// As the bits of a signed 64-bit number. OverflowError if it has more.
std::uint64_t bits_of(nb::handle value) {
  const nb::object number = nb::steal(PyNumber_Index(value.ptr()));
  if (!number.is_valid()) throw nb::python_error();
  int overflow = 0;
  const long long n = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (n == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
  if (overflow != 0) {
    const std::string text = "an atomic holds 64 bits (-2**63 to 2**63 - 1), not " +
                             std::string(nb::str(number).c_str());
    PyErr_SetString(PyExc_OverflowError, text.c_str());
    throw nb::python_error();
  }
  return static_cast<std::uint64_t>(n);
}

/// Calls `use(cell)`; ClosedError if it was closed here.
template <class Call>
auto with(PyAtomic& self, Call&& call) {
  const AtomicCell::Use inside(self.cell);
  if (!inside) raise_status(Status::kClosed);
  return run_whole(*self.core, [&] { return call(self.cell); });
}
std::int64_t as_signed(std::uint64_t bits) noexcept { return static_cast<std::int64_t>(bits); }

std::int64_t wait(PyAtomic& self, nb::handle while_equal, nb::handle timeout) {
  require_seat(*self.core);
  const std::uint64_t old = bits_of(while_equal);
  const std::int64_t until = until_of(timeout);
  return with(self, [&](AtomicCell& cell) {
    Wait waiting;
    const Status status = run_sliced([&] { return cell.wait_slice(old, until, waiting); });
    if (status != Status::kEmpty) check(status);
    return as_signed(cell.load());
  });
}

}  // namespace

void bind_atomic(nb::module_& m, nb::class_<PySegment>& segment) {
  nb::class_<PyAtomic>(
      m, "Atomic", nb::is_weak_referenceable(),
      "A signed number of 64 bits with a key, which any number of processes change and wait "
      "for.\n\n"
      "`Segment.atomic` makes it. Every method is one atomic step, in one order for all. What "
      "goes over the end of 64 bits wraps around; arguments beyond them are an OverflowError. As "
      "in C++20, changing the value wakes nobody; `notify` does. It is freed when the last "
      "process that has it closes it, drops it or dies.")
      .def(
          "load",
          [](PyAtomic& self) {
            return with(self, [](AtomicCell& c) { return as_signed(c.load()); });
          },
          "Return the value.")
      .def(
          "store",
          [](PyAtomic& self, nb::handle value) {
            const std::uint64_t bits = bits_of(value);
            with(self, [&](AtomicCell& c) { c.store(bits); });
          },
          nb::sig("def store(self, value: int, /) -> None"), "Set the value.")
      .def(
          "add",
          [](PyAtomic& self, nb::handle value) {
            const std::uint64_t bits = bits_of(value);
            return with(self, [&](AtomicCell& c) { return as_signed(c.add(bits)); });
          },
          nb::sig("def add(self, value: int, /) -> int"),
          "Add to the value, wrapping around; return what it was before.")
      .def(
          "exchange",
          [](PyAtomic& self, nb::handle value) {
            const std::uint64_t bits = bits_of(value);
            return with(self, [&](AtomicCell& c) { return as_signed(c.exchange(bits)); });
          },
          nb::sig("def exchange(self, value: int, /) -> int"),
          "Set the value; return what it was before.")
      .def(
          "compare_exchange",
          [](PyAtomic& self, nb::handle expected, nb::handle desired) {
            const std::uint64_t from = bits_of(expected);
            const std::uint64_t to = bits_of(desired);
            return with(self, [&](AtomicCell& c) { return c.compare_exchange(from, to); });
          },
          nb::sig("def compare_exchange(self, expected: int, desired: int, /) -> bool"),
          "Set the value to *desired* if it is *expected*; say whether it was.")
      .def("wait", wait, nb::arg(), nb::arg("timeout") = nb::none(),
           nb::sig("def wait(self, while_equal: int, /, timeout: float | None = None) -> int"),
           "Sleep while the value is *while_equal*, up to *timeout* seconds.\n\n"
           "It looks when it begins, when it is notified, and at the end of each slice of the "
           "wait (20 ms, after a second 200 ms).\n\n"
           "Returns:\n    The value; if it is *while_equal*, the time was up.")
      .def(
          "notify",
          [](PyAtomic& self, nb::handle n) {
            int count = -1;
            if (!n.is_none()) {
              const auto wanted = as_signed(bits_of(n));
              if (wanted < 0) {
                const std::string text = "n must not be negative: " + std::to_string(wanted);
                throw nb::value_error(text.c_str());
              }
              count = wanted > INT_MAX ? INT_MAX : static_cast<int>(wanted);
            }
            with(self, [&](AtomicCell& c) { c.notify(count); });
          },
          nb::arg("n") = nb::none(), nb::sig("def notify(self, n: int | None = None) -> None"),
          "Wake up to *n* waiters, None: all, to look at the value again.")
      .def_prop_ro(
          "key", [](const PyAtomic& a) { return a.key; }, nb::sig("def key(self) -> int | str"))
      .def_prop_ro("closed", [](const PyAtomic& a) { return a.cell.is_closed(); })
      .def_prop_ro("channel_id", [](const PyAtomic& a) { return a.cell.id(); })
      .def_prop_ro(
          "segment", [](const PyAtomic& a) { return a.segment; },
          nb::sig("def segment(self) -> Segment"))
      .def(
          "transit",
          [](PyAtomic& self, Token parcels) {
            require_seat(*self.core);
            return with(self, [&](AtomicCell& c) {
              check_hold(*self.core, hold_in_transit(*self.core, c.id(), End::kSender, parcels));
              return parcels != 0 ? parcels : self.core->token();
            });
          },
          nb::arg("parcels") = 0, nb::sig("def transit(self, parcels: int = 0, /) -> int"),
          "Keep the cell alive for a handle on its way, as `Sender.transit`; `open_atomic` takes "
          "what this returns.")
      .def(
          "close", [](PyAtomic& self) { self.cell.close(); },
          "Let go of the cell. Waits that are under way here go on. Twice is allowed.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> Atomic"))
      .def(
          "__exit__", [](PyAtomic& self, nb::args) { self.cell.close(); },
          nb::sig("def __exit__(self, *args: object) -> None"));

  segment
      .def(
          "atomic",
          [](nb::handle self, nb::handle key, nb::handle value) {
            JoinRequest request;
            request.type = ChannelType::kAtomic;
            request.value = bits_of(value);
            const auto core = nb::cast<PySegment&>(self).core.get();
            const std::uint32_t id = join(*core, key, request);
            return nb::cast(new PyAtomic(nb::borrow(self), core, id),
                            nb::rv_policy::take_ownership);
          },
          nb::arg(), nb::arg("value") = 0,
          nb::sig("def atomic(self, key: int | str, /, value: int = 0) -> Atomic"),
          "Return the 64-bit number of that key; who makes it sets it to *value*.\n\n"
          "Raises:\n"
          "    ValueError: The key is of another type.\n"
          "    OverflowError: The value has more than 64 bits.")
      .def(
          "open_atomic",
          [](nb::handle self, std::uint32_t id, std::uint32_t transit) {
            const auto core = nb::cast<PySegment&>(self).core.get();
            require_seat(*core);
            check_hold(*core, open_channel(*core, id, End::kSender, transit, ChannelType::kAtomic));
            return nb::cast(new PyAtomic(nb::borrow(self), core, id),
                            nb::rv_policy::take_ownership);
          },
          nb::arg(), nb::arg() = 0,
          nb::sig("def open_atomic(self, channel_id: int, transit: int = 0, /) -> Atomic"),
          "Open an atomic that came with a handle.");
}

}  // namespace ipcbuf::binding
