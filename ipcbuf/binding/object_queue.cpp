// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// object_queue.cpp - put and get as multiprocessing.Queue has them, without Python in between.
#include "binding.hpp"
#include "ipcbuf/lease.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf::binding {

namespace {

/// The two ends of one shared channel.
struct PyObjectQueue {
  nb::object sender_object;
  nb::object receiver_object;
  PySender& sender;
  PyReceiver& receiver;
  bool closed = false;

  PyObjectQueue(nb::object s, nb::object r)
      : sender_object(std::move(s)),
        receiver_object(std::move(r)),
        sender(nb::cast<PySender&>(sender_object)),
        receiver(nb::cast<PyReceiver&>(receiver_object)) {}
};

void require_open(nb::handle self, const PyObjectQueue& q) {
  if (!q.closed) [[likely]]
    return;
  const nb::object text = nb::str("Queue {!r} is closed").attr("format")(self);
  PyErr_SetObject(PyExc_ValueError, text.ptr());
  throw nb::python_error();
}

/// `get(5)` is a mistake that works with the standard library: any object can be the flag.
bool is_true(nb::handle flag) {
  const int truth = PyObject_IsTrue(flag.ptr());
  if (truth < 0) throw nb::python_error();
  return truth != 0;
}

void put(nb::handle self, nb::handle object, bool block, nb::handle timeout) {
  auto& q = *nb::inst_ptr<PyObjectQueue>(self);
  require_open(self, q);
  require_seat(*q.sender.core);
  run_whole(*q.sender.core, [&] {
    send_object(q.sender, object.ptr(), until_of(block, timeout), Flavour::kQueue);
  });
}

nb::object get(nb::handle self, bool block, nb::handle timeout) {
  auto& q = *nb::inst_ptr<PyObjectQueue>(self);
  require_open(self, q);
  require_seat(*q.receiver.core);
  Incoming m;
  return run_whole(*q.receiver.core, [&] {
    receive(q.receiver, m, until_of(block, timeout), Flavour::kQueue);
    return decode_any(q.receiver.segment, *q.receiver.core, m, q.receiver.copies);
  });
}

std::uint32_t pending(PyObjectQueue& q) {
  return run_whole(*q.receiver.core, [&] { return q.receiver.end.pending(); });
}

}  // namespace

void bind_object_queue(nb::module_& m) {
  m.def("set_queue_end", set_queue_end,
        nb::sig("def set_queue_end(error: type[Exception], /) -> None"),
        "Say what `ObjectQueue` raises when it was shut down, in the whole process.");
  nb::class_<PyObjectQueue>(m, "ObjectQueue", nb::is_weak_referenceable(),
                            "Both ends of a shared channel of objects, with the methods of "
                            "`multiprocessing.Queue`.")
      .def(
          "__init__",
          [](PyObjectQueue* self, nb::object sender, nb::object receiver, int) {
            if (!nb::isinstance<PySender>(sender) || !nb::isinstance<PyReceiver>(receiver))
              throw nb::type_error("ObjectQueue needs a Sender and a Receiver");
            new (self) PyObjectQueue(std::move(sender), std::move(receiver));
          },
          nb::arg("sender"), nb::arg("receiver"), nb::arg("maxsize") = 0,
          nb::sig("def __init__(self, sender: Sender, receiver: Receiver, maxsize: int = 0) -> "
                  "None"))
      .def(
          "put",
          [](nb::handle self, nb::handle object, nb::handle block, nb::handle timeout) {
            put(self, object, is_true(block), timeout);
          },
          nb::arg("obj").none(), nb::arg("block").none() = true, nb::arg("timeout") = nb::none(),
          nb::sig("def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> "
                  "None"),
          "Put an object, as `multiprocessing.Queue.put`. Pickling errors are raised here.")
      .def(
          "get",
          [](nb::handle self, nb::handle block, nb::handle timeout) {
            return get(self, is_true(block), timeout);
          },
          nb::arg("block").none() = true, nb::arg("timeout") = nb::none(),
          nb::sig("def get(self, block: bool = True, timeout: float | None = None) -> Any"),
          "Return the oldest object, as `multiprocessing.Queue.get`.")
      .def(
          "put_nowait",
          [](nb::handle self, nb::handle object) { put(self, object, false, nb::none()); },
          nb::arg("obj").none(), nb::sig("def put_nowait(self, obj: Any) -> None"),
          "Put without waiting, as `multiprocessing.Queue.put_nowait`.")
      .def(
          "get_nowait", [](nb::handle self) { return get(self, false, nb::none()); },
          nb::sig("def get_nowait(self) -> Any"),
          "Return the oldest object or raise `queue.Empty`.")
      .def("qsize", pending, "Return the exact number of objects in the queue.")
      .def(
          "empty", [](PyObjectQueue& q) { return pending(q) == 0; },
          "Say whether there is nothing to get.")
      .def(
          "full",
          [](PyObjectQueue& q) {
            return run_whole(*q.sender.core, [&] { return q.sender.end.is_full(); });
          },
          "Say whether `maxsize` objects are in the queue.")
      .def(
          "counts",
          [](PyObjectQueue& q) {
            return run_whole(*q.sender.core, [&] {
              const std::uint32_t received = q.receiver.end.received();  // first: never ahead
              return nb::make_tuple(q.sender.end.sent(), received);
            });
          },
          nb::sig("def counts(self) -> tuple[int, int]"),
          "Return how many objects were ever put and got, modulo 2**32.")
      .def(
          "has_leases",
          [](PyObjectQueue& q) {
            return run_whole(*q.receiver.core, [&] {
              const WithoutGil released;
              return is_leased_elsewhere(*q.receiver.core, q.receiver.end.id());
            });
          },
          "Say whether another living process has an object under a lease.")
      .def(
          "shut_down",
          [](nb::handle self) {
            auto& q = *nb::inst_ptr<PyObjectQueue>(self);
            require_open(self, q);
            require_seat(*q.sender.core);
            check(run_sliced([&] {
              const Status status = q.sender.end.shut_down(platform::monotonic_ns() + 20'000'000);
              return status == Status::kContended ? Status::kSlice : status;
            }));
          },
          nb::sig("def shut_down(self) -> None"),
          "End the queue for all processes: `put` raises, and `get` once all was got.")
      .def(
          "close_native",
          [](PyObjectQueue& q) {
            q.closed = true;
            q.sender.end.close();
            q.receiver.end.close();
          },
          "Give both ends up in this process. What was put stays for the others.")
      .def_ro("closed", &PyObjectQueue::closed)
      .def_ro("sender", &PyObjectQueue::sender_object, nb::sig("def sender(self) -> Sender"))
      .def_ro("receiver", &PyObjectQueue::receiver_object,
              nb::sig("def receiver(self) -> Receiver"));
}

}  // namespace ipcbuf::binding
