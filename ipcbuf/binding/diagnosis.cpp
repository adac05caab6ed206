// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// diagnosis.cpp - what core/diagnosis.hpp finds, as plain dictionaries.
#include "ipcbuf/diagnosis.hpp"

#include <cstring>

#include "binding.hpp"

namespace ipcbuf::binding {

namespace {

constexpr const char* kEndStates[] = {"open", "closed", "dead", "awaited"};
constexpr const char* kChannelTypes[] = {"record", "static", "atomic"};
constexpr const char* kBellKinds[] = {"futex", "eventfd", "socket"};
constexpr const char* kHoldKinds[] = {"none", "process", "ticket", "transit"};

template <class E, std::size_t N>
const char* name_of(E value, const char* const (&names)[N]) {
  return names[static_cast<std::size_t>(value)];  // the core has checked it
}

nb::object seconds_or_none(bool known, std::int64_t ns) {
  if (!known) return nb::none();
  return nb::float_(static_cast<double>(ns) / 1e9);
}

nb::object pid_or_none(std::uint32_t pid) {
  if (pid == 0) return nb::none();
  return nb::int_(pid);
}

nb::object key_of(const ChannelKey& key) {
  if (key.kind == KeyKind::kNone) return nb::none();
  if (key.kind == KeyKind::kInt) {
    std::int64_t number = 0;
    std::memcpy(&number, key.text, sizeof number);
    return nb::int_(number);
  }
  return nb::steal(PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(key.text), key.length,
                                        "backslashreplace"));
}

nb::dict end_of(const EndDiagnosis& end) {
  nb::dict out;
  out["state"] = name_of(end.state, kEndStates);
  out["owner"] = pid_or_none(end.owner_pid);
  out["inside"] = pid_or_none(end.lock_pid);
  nb::list holders;
  for (const HolderDiagnosis& h : end.holders) {
    nb::dict holder;
    holder["kind"] = name_of(h.kind, kHoldKinds);
    holder["pid"] = pid_or_none(h.pid);
    holder["count"] = h.count;
    holders.append(holder);
  }
  out["holders"] = holders;
  out["sleeper"] = pid_or_none(end.sleeper.pid);
  out["sleeps_for"] = seconds_or_none(end.sleeper.pid != 0, end.sleeper.for_ns);
  out["last_pid"] = pid_or_none(end.last_pid);
  out["left_ago"] = seconds_or_none(end.last_pid != 0, end.left_ns);
  return out;
}

nb::list diagnose_segment(const PySegment& self) {
  std::vector<ChannelDiagnosis> channels;
  const auto core = self.core.get();
  run_whole(*core, [&] {
    const WithoutGil released;
    channels = diagnose(*core);
  });
  nb::list out;
  for (const ChannelDiagnosis& c : channels) {
    nb::dict channel;
    channel["id"] = c.id;
    channel["key"] = key_of(c.key);
    channel["type"] = name_of(c.type, kChannelTypes);
    channel["shared"] = c.shared;
    channel["bell"] = name_of(c.bell, kBellKinds);
    channel["messages"] = c.messages;
    channel["bytes"] = c.bytes;
    channel["sent_count"] = c.sent;
    channel["received_count"] = c.received;
    channel["max_items"] = c.max_items;
    channel["max_bytes"] = c.max_bytes;
    channel["sender"] = end_of(c.sender);
    channel["receiver"] = end_of(c.receiver);
    out.append(channel);
  }
  return out;
}

}  // namespace

void bind_diagnosis(nb::class_<PySegment>& segment) {
  segment.def(
      "diagnose", diagnose_segment, nb::sig("def diagnose(self) -> list[dict[str, Any]]"),
      "Say for each channel who holds its ends and who waits there, for people to read.\n\n"
      "Taken without a lock while others work, so neighbouring numbers may be of different\n"
      "moments. A dictionary has `id`, `key` (int, str or None), `type`, `shared`, `bell`,\n"
      "`messages`, `bytes`, `sent_count` and `received_count` (ever, modulo 2**32), `max_items`,\n"
      "`max_bytes` (0: no limit), and `sender` and `receiver`:\n"
      "dictionaries of `state` ('open', 'closed', 'dead', 'awaited'), `owner` (the pid of the\n"
      "only user of an exclusive end), `inside` (the pid that has the lock of a shared one),\n"
      "`holders` (list of `kind`, `pid`, `count`), `sleeper` (the pid that went to sleep there\n"
      "last) and `sleeps_for` (seconds), `last_pid` (who died or closed there last) and\n"
      "`left_ago` (seconds). What is not known is None.");
}

}  // namespace ipcbuf::binding
