// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// wait.cpp - `ipcbuf.wait`: many ends and descriptors at once. The work is in core/wait_set.hpp.
#include <utility>
#include <vector>

#include "binding.hpp"
#include "ipcbuf/wait_set.hpp"

namespace ipcbuf::binding {

namespace {

nb::list wait(nb::handle objects, nb::handle timeout) {
  const std::int64_t until = until_of(timeout);
  const nb::list all(nb::borrow(objects));  // keeps them alive, and the order
  std::vector<Endpoint*> ends;
  std::vector<int> fds;
  std::vector<bool> is_end;
  std::vector<Segment*> segments;
  for (const nb::handle object : all) {
    Endpoint* end = nullptr;
    if (nb::isinstance<PyReceiver>(object)) {
      auto& receiver = nb::cast<PyReceiver&>(object);
      require_seat(*receiver.core);
      end = &receiver.end;
    } else if (nb::isinstance<PySender>(object)) {
      auto& sender = nb::cast<PySender&>(object);
      require_seat(*sender.core);
      end = &sender.end;
    }
    is_end.push_back(end != nullptr);
    if (end != nullptr) {
      if (segments.empty() || segments.back() != &end->segment())
        segments.push_back(&end->segment());
      ends.push_back(end);
      continue;
    }
    const int fd = PyObject_AsFileDescriptor(object.ptr());
    if (fd < 0) throw nb::python_error();
    fds.push_back(fd);
  }
  nb::list out;
  if (all.size() == 0) return out;
  WaitSet set(std::move(ends), fds);
  Failure why;
  const Status status = run_sliced([&] { return set.slice(until, why); });
  if (status == Status::kEmpty) return out;
  for (Segment* segment : segments) require_whole(*segment);
  check(status, why);
  std::size_t end = 0;
  std::size_t fd = 0;
  for (std::size_t i = 0; i < is_end.size(); ++i)
    if (is_end[i] ? set.is_end_ready(end++) : set.is_fd_ready(fd++)) out.append(all[i]);
  return out;
}

}  // namespace

void bind_wait(nb::module_& m) {
  m.def(
      "wait", wait, nb::arg("ends"), nb::arg("timeout") = nb::none(),
      nb::sig("def wait(ends: Iterable[Any], timeout: float | None = None) -> list[Any]"),
      "Wait until any of *ends* is ready and return those that are, in the order given.\n\n"
      "A `Receiver` is ready when a message, or the end, is there; a `Sender` when there is room\n"
      "(for the message that it refused last, if it did), or nobody is left to receive. As\n"
      "`multiprocessing.connection.wait` it also takes objects with `fileno()` and descriptors.\n"
      "Nothing is taken: another user of a shared end may be faster, so receive with a time-out.\n"
      "Of no ends at all the answer is [], at once.\n\n"
      "Args:\n    ends: Any number of them, of any segments.\n"
      "    timeout: Seconds to wait; None waits for ever, 0 does not wait.\n\n"
      "Returns:\n    What is ready; [] if the time is up.\n\n"
      "Raises:\n    ClosedError: One of the ends was closed here.\n"
      "    SegmentError: The system refused a descriptor or a thread, or one is not open.");
}

}  // namespace ipcbuf::binding
