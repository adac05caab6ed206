// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// errors.cpp - the one table from Status to exception.
#include <cerrno>
#include <cstring>
#include <string>

#include "binding.hpp"

namespace ipcbuf::binding {

namespace {

nb::object error_class(const char* name) {
  return nb::module_::import_("ipcbuf.errors").attr(name);
}

[[noreturn]] void raise(const nb::object& type, const nb::object& value) {
  PyErr_SetObject(type.ptr(), value.ptr());
  throw nb::python_error();
}

[[noreturn]] void raise_named(const char* name, const char* text) {
  const nb::object type = error_class(name);
  raise(type, type(text));
}

std::string remedy(const Failure& why) {
  if (std::strcmp(why.reason, "max_size") == 0)
    return "max_size reached; make the segment with a larger max_size, or free records";
  if (std::strcmp(why.reason, "cgroup") == 0)
    return "the memory cgroup has " + std::to_string(why.headroom) +
           " bytes left; raise its memory.max, or free records";
  if (std::strcmp(why.reason, "MemAvailable") == 0)
    return "the machine can spare " + std::to_string(why.headroom) +
           " bytes (5 % are kept); free memory elsewhere";
  if (why.sys_errno != 0) return std::string(why.reason) + ": " + std::strerror(why.sys_errno);
  return why.reason;
}

}  // namespace

void raise_status(Status status, const Failure& why, Flavour flavour) {
  switch (status) {
    case Status::kEmpty:
      if (flavour == Flavour::kQueue) {
        const nb::object type = nb::module_::import_("queue").attr("Empty");
        raise(type, type());
      }
      raise_named("ChannelEmpty", "no message came in time");
    case Status::kContended:  // its lock's owner is alive but does not go on: no room now
    case Status::kSlice:
    case Status::kFull:
      if (flavour == Flavour::kQueue) {
        const nb::object type = nb::module_::import_("queue").attr("Full");
        raise(type, type());
      }
      raise_named("ChannelFull", "the channel had no room in time");
    case Status::kClosed:
      raise_named("ClosedError", "this end of the channel was closed here");
    case Status::kEnded:
      raise_named("EndOfChannel", "every sender is gone and everything was received");
    case Status::kBroken:
      raise_named("BrokenChannel", "the other end of the channel is gone");
    case Status::kBusyEnd:
      raise_named("BusyError",
                  "this end is exclusive and another thread or process uses it; "
                  "make the channel with shared=True, or use the end in one place");
    case Status::kTooLarge: {
      const nb::object type = error_class("RecordTooLarge");
      raise(type, type(why.requested, why.max_size));
    }
    case Status::kExhausted: {
      const nb::object type = error_class("HeapExhausted");
      raise(type, type(why.requested, why.committed, why.max_size, why.free_bytes, why.largest_run,
                       remedy(why).c_str()));
    }
    case Status::kTooMany: {
      const nb::object type = error_class("TooManyProcesses");
      raise(type, type(kMaxSlots));
    }
    case Status::kNotFound:
      raise_named("ClosedError", "the channel is gone: all its users closed it");
    case Status::kExists: {
      const nb::object type = error_class("SegmentExists");
      raise(type, type(EEXIST, "a segment of this name exists"));
    }
    case Status::kMismatch:
      throw nb::value_error(why.reason);
    case Status::kPermission: {
      const nb::object type = error_class("SegmentPermission");
      raise(type, type(EACCES, why.reason));
    }
    case Status::kLost:
      raise_named("SegmentLost", "somebody closed the segment's descriptor in this process");
    case Status::kNotASegment:
      raise_named("NotASegment", "the file does not begin as a segment does");
    case Status::kVersion:
      raise_named("VersionMismatch", "the segment has another layout version");
    case Status::kAbiDiffers:
      raise_named("AbiMismatch", "the segment was made for another architecture");
    case Status::kTruncated:
      raise_named("SegmentTruncated", "the file is shorter than its header says");
    case Status::kCorrupted:
      raise_named("SegmentCorrupted",
                  "an impossible state was found; the segment is not used any more");
    case Status::kSystem: {
      const nb::object type = error_class("SegmentError");
      const std::string text = std::string(why.reason) + ": " + std::strerror(why.sys_errno);
      raise(type, type(why.sys_errno, text.c_str()));
    }
    case Status::kOk:
      break;
  }
  throw std::runtime_error("ipcbuf: a success was raised");
}

void require_seat(Segment& segment) {
  if (!segment.is_seated()) raise_status(Status::kTooMany);
}

}  // namespace ipcbuf::binding
