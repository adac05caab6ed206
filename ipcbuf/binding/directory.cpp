// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// directory.cpp - channels by key: the methods of `Segment` and the texts of their refusals. The
// work is in core/directory.hpp.
#include "ipcbuf/directory.hpp"

#include <cstring>
#include <string>
#include <string_view>

#include "binding.hpp"
#include "ipcbuf/static_area.hpp"

namespace ipcbuf::binding {

ChannelKey key_from(nb::handle object) {
  if (PyLong_Check(object.ptr()) && !PyBool_Check(object.ptr())) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
    if (number == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    if (overflow != 0) {
      const std::string text = "a key that is an int has 64 bits (-2**63 to 2**63 - 1), not " +
                               std::string(nb::str(object).c_str());
      throw nb::value_error(text.c_str());
    }
    return key_of(std::int64_t{number});
  }
  if (PyUnicode_Check(object.ptr())) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
    if (text == nullptr) throw nb::python_error();
    if (size == 0) throw nb::value_error("a key that is a str must not be empty");
    if (size > Py_ssize_t{kMaxKey}) {
      const std::string message = "a key that is a str has at most " + std::to_string(kMaxKey) +
                                  " bytes of UTF-8, not " + std::to_string(size);
      throw nb::value_error(message.c_str());
    }
    return key_of(std::string_view(text, static_cast<std::size_t>(size)));
  }
  const std::string text =
      std::string("a key is an int or a str, not ") + nb::type_name(object.type()).c_str();
  throw nb::type_error(text.c_str());
}

nb::object key_to(const ChannelKey& key) {
  if (key.kind == KeyKind::kInt) {
    std::int64_t number = 0;
    std::memcpy(&number, key.text, sizeof number);
    return nb::int_(number);
  }
  if (key.kind != KeyKind::kStr || key.length > kMaxKey) return nb::none();
  return nb::steal(
      PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(key.text), key.length, "replace"));
}

namespace {

const char* name_of(std::uint64_t type) noexcept {
  switch (static_cast<ChannelType>(type)) {
    case ChannelType::kRecord:
      return "record";
    case ChannelType::kStatic:
      return "static";
    case ChannelType::kAtomic:
      return "atomic";
  }
  return "unknown";
}

std::string shown(nb::handle key) { return nb::repr(key).c_str(); }

[[noreturn]] void raise_mismatch(nb::handle key, const Failure& why) {
  const std::string_view what = why.reason;
  const auto value = [&](std::uint64_t n) -> std::string {
    if (what == "type") return name_of(n);
    if (what == "shared" || what == "lease") return n != 0 ? "True" : "False";
    return std::to_string(n);
  };
  const std::string text = "channel " + shown(key) + " has " + std::string(what) + "=" +
                           value(why.committed) + ", not " + value(why.requested);
  throw nb::value_error(text.c_str());
}

[[noreturn]] void raise_busy(nb::handle key, End end, const Failure& why) {
  const std::string text = std::string("the ") + (end == End::kSender ? "sending" : "receiving") +
                           " end of channel " + shown(key) + " is exclusive and process " +
                           std::to_string(why.requested) +
                           " has it; it must close it first, or make the channel with shared=True";
  PyErr_SetString(nb::module_::import_("ipcbuf.errors").attr("BusyError").ptr(), text.c_str());
  throw nb::python_error();
}

template <class T>
std::optional<T> optional(nb::handle value, const char* name) {
  if (value.is_none()) return std::nullopt;
  T out{};
  if (!nb::try_cast<T>(value, out)) {
    const std::string text = std::string(name) + " must be " +
                             (std::is_same_v<T, bool> ? "a bool" : "an int from 0 to 2**64 - 1") +
                             " or None, not " + shown(value);
    if (PyLong_Check(value.ptr())) throw nb::value_error(text.c_str());
    throw nb::type_error(text.c_str());
  }
  return out;
}

}  // namespace

std::uint32_t join(Segment& core, nb::handle key, JoinRequest& request) {
  require_seat(core);
  request.key = key_from(key);
  std::uint32_t id = 0;
  Failure why;
  const Status status = run_whole(
      core, [&] { return run_sliced([&] { return join_channel_slice(core, request, id, why); }); });
  if (status == Status::kMismatch) raise_mismatch(key, why);
  if (status == Status::kBusyEnd) raise_busy(key, request.end, why);
  check(status, why);
  return id;
}

namespace {

template <class PyEnd>
nb::object join_end(nb::handle self, nb::handle key, nb::handle max_items, nb::handle max_bytes,
                    nb::handle shared, nb::handle lease, End end) {
  JoinRequest request;
  request.end = end;
  request.max_items = optional<std::uint64_t>(max_items, "max_items");
  request.max_bytes = optional<std::uint64_t>(max_bytes, "max_bytes");
  request.shared = optional<bool>(shared, "shared");
  request.lease = optional<bool>(lease, "lease");
  const auto core = nb::cast<PySegment&>(self).core.get();
  const std::uint32_t id = join(*core, key, request);
  return nb::cast(new PyEnd(nb::borrow(self), core, id), nb::rv_policy::take_ownership);
}

bool has_channel(const PySegment& self, nb::handle key) {
  const auto core = self.core.get();
  require_seat(*core);
  const ChannelKey wanted = key_from(key);
  std::uint32_t id = 0;
  const Status status = run_whole(
      *core, [&] { return run_sliced([&] { return find_channel_slice(*core, wanted, id); }); });
  if (status != Status::kNotFound) check(status);
  return status == Status::kOk;
}

bool wait_for_channel(const PySegment& self, nb::handle key, nb::handle timeout) {
  const auto core = self.core.get();
  require_seat(*core);
  const ChannelKey wanted = key_from(key);
  const std::int64_t until = until_of(timeout);
  Wait wait;
  const Status status = run_whole(*core, [&] {
    return run_sliced([&] { return wait_for_key_slice(*core, wanted, until, wait); });
  });
  if (status != Status::kEmpty) check(status);
  return status == Status::kOk;
}

bool remove_channel(const PySegment& self, nb::handle key) {
  const auto core = self.core.get();
  require_seat(*core);
  const ChannelKey wanted = key_from(key);
  const Status status = run_whole(
      *core, [&] { return run_sliced([&] { return remove_channel_slice(*core, wanted); }); });
  if (status != Status::kNotFound) check(status);
  return status == Status::kOk;
}

std::vector<ChannelInfo> all_channels(const PySegment& self) {
  const auto core = self.core.get();
  require_seat(*core);
  return run_whole(*core, [&] {
    const WithoutGil released;
    return list_channels(*core);
  });
}

int remove_channels(const PySegment& self) {
  const auto core = self.core.get();
  int removed = 0;
  for (const ChannelInfo& info : all_channels(self)) {
    if (info.key.kind == KeyKind::kNone) continue;
    const Status status = run_whole(
        *core, [&] { return run_sliced([&] { return remove_channel_slice(*core, info.key); }); });
    if (status != Status::kNotFound) check(status);
    removed += status == Status::kOk ? 1 : 0;
  }
  return removed;
}

nb::list channels(const PySegment& self) {
  const nb::object type = nb::module_::import_("ipcbuf.info").attr("ChannelInfo");
  nb::list out;
  for (const ChannelInfo& info : all_channels(self))
    out.append(type(key_to(info.key), name_of(static_cast<std::uint64_t>(info.type)), info.id,
                    info.shared, info.senders, info.receivers, info.messages, info.bytes,
                    info.max_items, info.max_bytes));
  return out;
}

constexpr const char* kJoinDoc =
    "\n\n"
    "The first comer makes the channel, later ones join it. Of an exclusive channel (the default) "
    "each end has one user at a time; another may join once that one has closed it, left or died. "
    "Until somebody has joined at the other end, this one waits for it. The channel goes, with "
    "what is in it, when its last user at either end is gone.\n\n"
    "Args:\n"
    "    key: An int of 64 bits, or a str of 1 to 60 bytes of UTF-8.\n"
    "    max_items: Messages the channel holds at most, 0: any number. None: as others say.\n"
    "    max_bytes: Bytes of messages it holds at most, or one larger message; 0: no limit.\n"
    "    shared: Any number of processes and threads may use each end. The first comer decides.\n"
    "    lease: What a receiver had taken and not yet finished when it died is delivered again "
    "(`Receiver.recv_leased`). Such ends are shared. The first comer decides.\n\n"
    "Raises:\n"
    "    ValueError: The channel has another type or limit, `shared` or `lease`.\n"
    "    BusyError: The end is exclusive and a living process has it.\n"
    "    HeapExhausted: The segment has no room, with the numbers.";

}  // namespace

void bind_directory(nb::class_<PySegment>& segment) {
  static const std::string sender_doc =
      std::string("Return the sending end of the channel of that key, made if need be.") + kJoinDoc;
  static const std::string receiver_doc =
      std::string("Return the receiving end of the channel of that key, made if need be.") +
      kJoinDoc;
  segment
      .def(
          "sender",
          [](nb::handle self, nb::handle key, nb::handle max_items, nb::handle max_bytes,
             nb::handle shared, nb::handle lease) {
            return join_end<PySender>(self, key, max_items, max_bytes, shared, lease, End::kSender);
          },
          nb::arg(), nb::kw_only(), nb::arg("max_items") = nb::none(),
          nb::arg("max_bytes") = nb::none(), nb::arg("shared") = nb::none(),
          nb::arg("lease") = nb::none(),
          nb::sig("def sender(self, key: int | str, /, *, max_items: int | None = None, "
                  "max_bytes: int | None = None, shared: bool | None = None, "
                  "lease: bool | None = None) -> Sender"),
          sender_doc.c_str())
      .def(
          "receiver",
          [](nb::handle self, nb::handle key, nb::handle max_items, nb::handle max_bytes,
             nb::handle shared, nb::handle lease) {
            return join_end<PyReceiver>(self, key, max_items, max_bytes, shared, lease,
                                        End::kReceiver);
          },
          nb::arg(), nb::kw_only(), nb::arg("max_items") = nb::none(),
          nb::arg("max_bytes") = nb::none(), nb::arg("shared") = nb::none(),
          nb::arg("lease") = nb::none(),
          nb::sig("def receiver(self, key: int | str, /, *, max_items: int | None = None, "
                  "max_bytes: int | None = None, shared: bool | None = None, "
                  "lease: bool | None = None) -> Receiver"),
          receiver_doc.c_str())
      .def("has_channel", has_channel, nb::arg(),
           nb::sig("def has_channel(self, key: int | str, /) -> bool"),
           "Say whether a living process uses a channel, static segment or atomic of that key.")
      .def("wait_for_channel", wait_for_channel, nb::arg(), nb::arg("timeout") = nb::none(),
           nb::sig("def wait_for_channel(self, key: int | str, /, "
                   "timeout: float | None = None) -> bool"),
           "Wait up to *timeout* seconds until there is a channel of that key.\n\n"
           "Returns:\n    Whether there is one.")
      .def("channels", channels, nb::sig("def channels(self) -> list[ChannelInfo]"),
           "Return what there is, anonymous channels included, without the users that died.\n\n"
           "Each is a snapshot of its own; others go on meanwhile.")
      .def(
          "has_channels", [](const PySegment& self) { return !all_channels(self).empty(); },
          nb::sig("def has_channels(self) -> bool"),
          "Say whether the segment has any channel, anonymous ones included.")
      .def("remove_channel", remove_channel, nb::arg(),
           nb::sig("def remove_channel(self, key: int | str, /) -> bool"),
           "Free a key: what comes next under it is new.\n\n"
           "Senders of the old channel get `BrokenChannel` at their next call, receivers what is "
           "still in it and then `EndOfChannel`. A static segment or an atomic goes on for those "
           "who have it. The memory is freed when the last of them has let go.\n\n"
           "Returns:\n    Whether there was one.")
      .def("remove_channels", remove_channels, nb::sig("def remove_channels(self) -> int"),
           "`remove_channel` for every key; return how many there were.");
}

}  // namespace ipcbuf::binding
