// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "binding.hpp"

NB_MODULE(_native, m) {
  using namespace ipcbuf::binding;
  m.doc() = "The compiled part of ipcbuf. Use the names that `ipcbuf` exports.";
  // Handles that are alive when the interpreter ends are no leak: only death frees the slot.
  nb::set_leak_warnings(false);
  bind_segment(m);
  bind_named(m);
  bind_record(m);
  bind_ticket(m);
  bind_sender(m);
  bind_receiver(m);
  bind_task(m);
  bind_lease(m);
  bind_object_queue(m);
  bind_codec(m);
  bind_results(m);
  bind_wait(m);
}
