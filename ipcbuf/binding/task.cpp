// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// task.cpp - a task that was taken from a channel; its block is freed after its result is out.
#include "binding.hpp"
#include "ipcbuf/block.hpp"

namespace ipcbuf::binding {

PyTask::PyTask(const nb::object& segment, Incoming& m, std::uint64_t id) : task_id(id) {
  kind_ = static_cast<RecordKind>(m.payload[8]);
  tag_ = static_cast<std::uint8_t>(m.payload[9]);
  for (std::uint32_t i = 0; i < m.block_count; ++i)
    records_.push_back(nb::cast(new PyRecord(segment, m.blocks[i].offset, m.blocks[i].length),
                                nb::rv_policy::take_ownership));
}

nb::object PyTask::load() const {
  if (records_.empty()) throw nb::value_error("the task was released");
  const auto& payload = nb::cast<const PyRecord&>(records_[0]);
  nb::object buffers = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(records_.size() - 1)));
  if (!buffers.is_valid()) throw nb::python_error();
  for (std::size_t i = 1; i < records_.size(); ++i)
    PyTuple_SET_ITEM(buffers.ptr(), static_cast<Py_ssize_t>(i - 1),
                     nb::object(records_[i]).release().ptr());
  return decode_payload(kind_, tag_, records_[0], payload.data(), payload.length(), buffers);
}

void bind_task(nb::module_& m) {
  nb::class_<PyTask>(m, "Task", "A task taken from a channel. `Receiver.recv_task` makes it.")
      .def_ro("task_id", &PyTask::task_id, "The number its sender gave it.")
      .def("load", &PyTask::load, nb::sig("def load(self) -> Any"),
           "Return the object that was sent. What its unpickling raises is raised here.")
      .def("release", &PyTask::release,
           "Free the task's memory, after its result was sent. Its arrays live on by themselves.");
}

}  // namespace ipcbuf::binding
