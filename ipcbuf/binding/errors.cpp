// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// errors.cpp - the one table from Status to exception.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "binding.hpp"
#include "ipcbuf/platform.hpp"

namespace ipcbuf::binding {

namespace {

nb::object error_class(const char* name) {
  return nb::module_::import_("ipcbuf.errors").attr(name);
}

[[noreturn]] void raise(const nb::object& type, const nb::object& value) {
  PyErr_SetObject(type.ptr(), value.ptr());
  throw nb::python_error();
}

[[noreturn]] void raise_text(const char* name, const std::string& text) {
  const nb::object type = error_class(name);
  raise(type, type(text.c_str()));
}

std::string abi_of(std::uint64_t word) {
  return std::string(word >> 24 == 1   ? "little-endian"
                     : word >> 24 == 2 ? "big-endian"
                                       : "unknown byte order") +
         ", pointers of " + std::to_string(word >> 16 & 0xFF) + " bytes, cache lines of " +
         std::to_string(word >> 8 & 0xFF) + ", pages of 2^" + std::to_string(word & 0xFF);
}

/// What is wrong with a file, with the numbers.
std::string explain(Status status, const Failure& why) {
  const std::string found = std::to_string(why.found);
  const std::string expected = std::to_string(why.expected);
  switch (status) {
    case Status::kNotASegment:
      return "the file does not begin as a segment does; it was not touched";
    case Status::kVersion:
      return "the segment has layout version " + found + ", this ipcbuf has version " + expected +
             "; use the same version of ipcbuf everywhere, or remove the segment";
    case Status::kAbiDiffers:
      return "the segment was made for another machine (" + abi_of(why.found) +
             "), this one needs " + abi_of(why.expected);
    case Status::kTruncated:
      return why.expected == 0
                 ? std::string("the file is shorter than its header says")
                 : "the file was cut short: it has " + found + " bytes and needs at least " +
                       expected + "; the segment is lost, remove it and make it again";
    case Status::kCorrupted:
      return why.reason[0] == 0
                 ? std::string("an impossible state was found; the segment is not used any more")
                 : "the header is corrupted: " + std::string(why.reason) + " is " + found +
                       ", which should be " + expected + "; remove the segment";
    default:
      return std::string(why.reason) + ": " + std::strerror(why.sys_errno);
  }
}

std::string remedy(const Failure& why) {
  if (std::strcmp(why.reason, "max_size") == 0)
    return "max_size reached; make the segment with a larger max_size, or free records";
  if (std::strcmp(why.reason, "cgroup") == 0)
    return "the memory cgroup has " + std::to_string(why.headroom) +
           " bytes left (5 % are kept); raise its memory.max, or free records";
  if (std::strcmp(why.reason, "MemAvailable") == 0)
    return "the machine can spare " + std::to_string(why.headroom) +
           " bytes (5 % are kept); free memory elsewhere";
  if (why.sys_errno == ENOSPC && why.system_size != 0)
    return "the file system that the segment is in is full: " + std::to_string(why.system_free) +
           " of " + std::to_string(why.system_size) +
           " bytes left; make it larger (docker run --shm-size, mount -o remount,size=), or free "
           "records";
  if (why.sys_errno == EFBIG)
    return "a file of this process may have " + std::to_string(why.system_size) +
           " bytes (RLIMIT_FSIZE); raise that with ulimit -f";
  if (why.sys_errno != 0) return std::string(why.reason) + ": " + std::strerror(why.sys_errno);
  if (why.reason[0] == 0)
    return "a table of the segment needs one more page, and there is no memory or no room in its "
           "file system";
  return why.reason;
}

PyObject* queue_end = nullptr;  // kept for the life of the process

}  // namespace

void set_queue_end(nb::object type) { queue_end = type.release().ptr(); }

void raise_status(Status status, const Failure& why, Flavour flavour) {
  switch (status) {
    case Status::kEmpty:
      if (flavour == Flavour::kQueue) {
        const nb::object type = nb::module_::import_("queue").attr("Empty");
        raise(type, type());
      }
      raise_text("ChannelEmpty", "no message came in time");
    case Status::kContended:  // its lock's owner is alive but does not go on: no room now
    case Status::kSlice:
    case Status::kFull:
      if (flavour == Flavour::kQueue) {
        const nb::object type = nb::module_::import_("queue").attr("Full");
        raise(type, type());
      }
      raise_text("ChannelFull", "the channel had no room in time");
    case Status::kClosed:
      raise_text("ClosedError", "this end of the channel was closed here");
    case Status::kEnded:
    case Status::kBroken:
      // A queue has both ends of its channel, so nobody but `shut_down` can have closed one.
      if (flavour == Flavour::kQueue && queue_end != nullptr) {
        const nb::object type = nb::borrow(queue_end);
        raise(type, type());
      }
      if (status == Status::kBroken)
        raise_text("BrokenChannel", "the other end of the channel is gone");
      raise_text("EndOfChannel", "every sender is gone and everything was received");
    case Status::kBusyEnd:
      raise_text("BusyError",
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
      if (why.requested == 0) raise(type, type(kMaxSlots));
      raise(type, type(why.requested, why.reason));
    }
    case Status::kNotFound:
      raise_text("ClosedError", "the channel is gone: all its users closed it");
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
      raise_text("SegmentLost", "somebody closed the segment's descriptor in this process");
    case Status::kTorn:
      raise_text("SegmentLost",
                 "this process was made by a raw clone while another thread was inside ipcbuf; "
                 "make it with os.fork, or start a program");
    case Status::kNotASegment:
      raise_text("NotASegment", explain(status, why));
    case Status::kVersion:
      raise_text("VersionMismatch", explain(status, why));
    case Status::kAbiDiffers:
      raise_text("AbiMismatch", explain(status, why));
    case Status::kTruncated:
      raise_text("SegmentTruncated", explain(status, why));
    case Status::kCorrupted:
      raise_text("SegmentCorrupted", explain(status, why));
    case Status::kSystem: {
      const nb::object type = error_class("SegmentError");
      raise(type, type(why.sys_errno, explain(status, why).c_str()));
    }
    case Status::kOk:
      break;
  }
  throw std::runtime_error("ipcbuf: a success was raised");
}

namespace {

[[noreturn]] void raise_file(const char* name, int error, const NamedFailure& why) {
  const nb::object type = error_class(name);
  const std::string text = why.detail.empty() ? explain(why.status, why) : why.detail;
  raise(type, type(error, text.c_str(), why.path.c_str()));
}

}  // namespace

void raise_named(const NamedFailure& why) {
  switch (why.status) {
    case Status::kMismatch:
      throw nb::value_error(why.detail.c_str());
    case Status::kExists:
      raise_file("SegmentExists", EEXIST, why);
    case Status::kNotFound:
      raise_file("SegmentNotFound", ENOENT, why);
    case Status::kPermission:
      raise_file("SegmentPermission", EACCES, why);
    case Status::kNotASegment:
      raise_file("NotASegment", EINVAL, why);
    case Status::kVersion:
      raise_file("VersionMismatch", EINVAL, why);
    case Status::kAbiDiffers:
      raise_file("AbiMismatch", EINVAL, why);
    case Status::kTruncated:
      raise_file("SegmentTruncated", EINVAL, why);
    case Status::kCorrupted:
      raise_file("SegmentCorrupted", EINVAL, why);
    case Status::kSystem:
      raise_file("SegmentError", why.sys_errno, why);
    default:
      raise_status(why.status, why);
  }
}

void raise_truncated(Segment& segment) {
  platform::FileStatus file;
  Failure why;
  if (platform::file_status(segment.fd(), file) == 0) why.found = file.size;
  const Constants& c = segment.constants();
  // What was reserved can't be asked of memory that may be gone; this much it had when it was made.
  why.expected = c.payload + std::min<std::uint64_t>(c.max_size, 2U << 20);
  raise_status(Status::kTruncated, why);
}

void require_seat(Segment& segment) {
  require_whole(segment);
  if (!segment.is_seated()) raise_status(segment.no_seat());
}

}  // namespace ipcbuf::binding
