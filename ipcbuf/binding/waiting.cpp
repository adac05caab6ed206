// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// waiting.cpp - time-outs, signals, and the GIL around what may wait.
#include <unistd.h>

#include <cmath>

#include "binding.hpp"
#include "ipcbuf/bridge.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf::binding {

namespace {

bool is_finalizing() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

}  // namespace

WithoutGil::~WithoutGil() {
  // A daemon thread that asks for the GIL now would be ended by an unwind that no C++ frame
  // survives. It has nothing to do any more: the process is about to exit.
  while (is_finalizing() && !is_main_thread()) ::pause();
  PyEval_RestoreThread(state_);
}

bool is_main_thread() noexcept { return ::gettid() == ::getpid(); }

std::int64_t until_of(nb::handle timeout) {
  if (timeout.is_none()) return platform::kForever;
  const double seconds = PyFloat_AsDouble(timeout.ptr());
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) throw nb::python_error();
  if (std::isnan(seconds)) throw nb::value_error("timeout is not a number");
  if (seconds <= 0) return 0;
  if (seconds > 1e9) return platform::kForever;
  return platform::monotonic_ns() + static_cast<std::int64_t>(seconds * 1e9);
}

std::int64_t until_of(bool block, nb::handle timeout) { return block ? until_of(timeout) : 0; }

int descriptor_of(Endpoint& end) {
  Failure why;
  int fd = -1;
  check(Bridge::descriptor_of(end, fd, why), why);
  return fd;
}

void send(PySender& sender, Outgoing& message, std::int64_t until, Flavour flavour) {
  Failure why;
  // Once with the GIL held: releasing it costs more than a send, and than asking a socket first
  // whether its other end is gone.
  sender.end.glance_at_hangup();
  Status status = sender.end.try_send(message, 0, why);
  if (status == Status::kFull || status == Status::kContended) {
    status = wait_for(sender.end,
                      [&](Wait& wait) { return sender.end.send_slice(message, until, why, wait); });
  }
  require_whole(*sender.core);
  if (status == Status::kOk) return;
  why.status = status;
  raise_status(status, why, flavour);
}

Status try_then_wait(PyReceiver& receiver, Incoming& message, std::int64_t until) {
  const Status status = receiver.end.try_receive(message, 0);
  if (status != Status::kEmpty && status != Status::kContended) return status;
  return wait_for(receiver.end,
                  [&](Wait& wait) { return receiver.end.receive_slice(message, until, wait); });
}

void receive(PyReceiver& receiver, Incoming& message, std::int64_t until, Flavour flavour) {
  const Status status = try_then_wait(receiver, message, until);
  require_whole(*receiver.core);
  if (status != Status::kOk) raise_status(status, {}, flavour);
}

}  // namespace ipcbuf::binding
