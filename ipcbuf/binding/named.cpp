// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// named.cpp - Python's view of segments with a name. The work is in core/named.hpp.
#include <nanobind/stl/string.h>

#include <string>
#include <utility>
#include <vector>

#include "binding.hpp"

namespace ipcbuf::binding {

// ---- what a close leaves ----

std::shared_ptr<Segment> OpenCore::get() const {
  const std::lock_guard lock(mutex_);
  if (core_ == nullptr) throw SegmentClosed();
  return core_;
}

bool OpenCore::is_closed() const {
  const std::lock_guard lock(mutex_);
  return core_ == nullptr;
}

void OpenCore::close() noexcept {
  std::shared_ptr<Segment> core;
  {
    const std::lock_guard lock(mutex_);
    core = std::move(core_);
    core_ = nullptr;
  }
  if (core != nullptr && by_name_) drop_handle(*core);
}

void PySegment::close() {
  {
    const std::lock_guard lock(ends_mutex);
    for (Endpoint* end : ends) end->close();
  }
  core.close();
}

namespace {

nb::object text_or_none(const std::string& text) {
  if (text.empty()) return nb::none();
  PyObject* decoded = PyUnicode_DecodeFSDefaultAndSize(text.data(), std::ssize(text));
  if (decoded == nullptr) throw nb::python_error();
  return nb::steal(decoded);
}

void open(PySegment* self, const std::string& name, std::uint64_t max_size, bool create,
          bool exist_ok, bool allow_disk) {
  NamedOptions options;
  options.max_size = max_size;
  options.create = create;
  options.exist_ok = exist_ok;
  options.allow_disk = allow_disk;
  NamedFailure why;
  std::shared_ptr<Segment> core;
  {
    const WithoutGil released;
    core = open_named(name, options, why);
  }
  if (core == nullptr) raise_named(why);
  new (self) PySegment(std::move(core), true);
}

nb::object name_of(const PySegment& self) {
  const auto core = self.core.get();
  return core->has_name() ? text_or_none(core->name()) : nb::none();
}

void unlink_segment(const PySegment& self) {
  const auto core = self.core.get();
  if (!core->has_name()) throw nb::value_error("the segment was not opened by a name");
  NamedFailure why;
  Status status = Status::kOk;
  {
    const WithoutGil released;
    status = unlink_named(*core, why);
  }
  if (status != Status::kOk) raise_named(why);
}

const char* problem_of(Status status) {
  switch (status) {
    case Status::kOk:
      return nullptr;
    case Status::kNotASegment:
      return "NotASegment";
    case Status::kVersion:
      return "VersionMismatch";
    case Status::kAbiDiffers:
      return "AbiMismatch";
    case Status::kTruncated:
      return "SegmentTruncated";
    case Status::kCorrupted:
      return "SegmentCorrupted";
    case Status::kPermission:
      return "SegmentPermission";
    default:
      return "SegmentError";
  }
}

nb::list list_names() {
  std::vector<NamedInfo> found;
  NamedFailure why;
  Status status = Status::kOk;
  {
    const WithoutGil released;
    status = list_named(found, why);
  }
  if (status != Status::kOk) raise_named(why);
  nb::list out;
  for (const NamedInfo& info : found) {
    nb::list pids;
    for (const std::uint32_t pid : info.pids) pids.append(pid);
    const char* problem = problem_of(info.status);
    out.append(nb::make_tuple(text_or_none(info.name), info.memory, info.max_size, nb::tuple(pids),
                              info.is_stale,
                              problem == nullptr ? nb::none() : nb::object(nb::str(problem))));
  }
  return out;
}

nb::list collect_names(bool damaged_too) {
  std::vector<std::string> removed;
  NamedFailure why;
  Status status = Status::kOk;
  {
    const WithoutGil released;
    status = collect_named(removed, damaged_too, why);
  }
  if (status != Status::kOk) raise_named(why);
  nb::list out;
  for (const std::string& name : removed) out.append(text_or_none(name));
  return out;
}

}  // namespace

void bind_named(nb::module_& m) {
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const SegmentClosed&) {
      PyObject* type =
          PyObject_GetAttrString(nb::module_::import_("ipcbuf.errors").ptr(), "ClosedError");
      if (type == nullptr) return;
      PyErr_SetString(type, "this segment was closed here");
      Py_DECREF(type);
    }
  });
  auto segment = nb::borrow<nb::class_<PySegment>>(m.attr("Segment"));
  segment.def("__init__", open, nb::arg("name"), nb::arg("max_size"), nb::arg("create"),
              nb::arg("exist_ok"), nb::arg("allow_disk"));
  segment.def_prop_ro("name", name_of, nb::sig("def name(self) -> str | None"),
                      "The name it was opened by in this process, None if by none.");
  segment.def("unlink_native", unlink_segment, "As `ipcbuf.Segment.unlink`.");
  segment.def(
      "retire_native",
      [](const PySegment& self) {
        const auto core = self.core.get();
        retire_named(*core);
      },
      "Remove the name if nobody else uses the segment.");
  m.def(
      "unlink_segment",
      [](const std::string& name) {
        NamedFailure why;
        Status status = Status::kOk;
        {
          const WithoutGil released;
          status = unlink_named(name, why);
        }
        if (status != Status::kOk) raise_named(why);
      },
      nb::arg("name"));
  m.def("list_segments", list_names,
        nb::sig("def list_segments() -> list[tuple[str, int, int, tuple[int, ...], bool, "
                "str | None]]"));
  m.def("collect_segments", collect_names, nb::arg(),
        nb::sig("def collect_segments(damaged_too: bool, /) -> list[str]"));
}

}  // namespace ipcbuf::binding
