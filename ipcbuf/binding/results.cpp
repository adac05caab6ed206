// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// results.cpp - the results of an executor, and the futures that nobody but the caller looks at.
//
// A message is (task, status, value). One thread at a time has the turn to take messages:
// the collector, who completes futures for everybody; or, while that stands aside, a thread that
// waits for the only call there is. So a call whose result is waited for at once costs two
// changes of process, and no change of thread.
//
//   kCollector  -- receive(): lone waits in a row -->  kNobody
//   kNobody     -- wait_alone() ------------------->  kWaiter  -- it returns -->  kNobody
//   kNobody     -- recalled, or no wait for 2 ms -->  kCollector
//
// What holds, whatever exception a signal handler raises in the waiting thread:
//   N1  A message that was taken has completed its future, or is in `held_` for the collector. No
//       Python code runs between the taking and that.
//   N2  A future is completed here only if it is plain: no condition, waiter or callback of it was
//       ever asked for, so there is nobody to tell. Whoever asks for one clears `_plain` first and
//       looks at `_state` afterwards; we look at the one and set the other with the GIL held
//       throughout.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>

#include "binding.hpp"

namespace ipcbuf::binding {

namespace {

using namespace std::chrono_literals;

constexpr int kBatch = 64;               // futures completed before other threads may run
constexpr std::uint32_t kLoneWaits = 3;  // in a row, before the collector stands aside
constexpr std::uint32_t kLoneWaitsMax = 4096;
constexpr auto kAside = 2ms;  // without a wait, before it comes back

/// Names of attributes, made once.
struct Names {
  PyObject* plain = PyUnicode_InternFromString("_plain");
  PyObject* state = PyUnicode_InternFromString("_state");
  PyObject* result = PyUnicode_InternFromString("_result");
  PyObject* call = PyUnicode_InternFromString("_call");
  PyObject* finished = PyUnicode_InternFromString("FINISHED");  // as concurrent.futures._base
};
const Names& names() {
  static const Names made;
  return made;
}

nb::object attribute(PyObject* of, PyObject* name) {
  PyObject* value = PyObject_GetAttr(of, name);
  if (value == nullptr) throw nb::python_error();
  return nb::steal(value);
}

void set_attribute(PyObject* of, PyObject* name, PyObject* value) {
  if (PyObject_SetAttr(of, name, value) != 0) throw nb::python_error();
}

class PyResults {
 public:
  PyResults(nb::object receiver, nb::dict pending)
      : receiver_object_(std::move(receiver)),
        receiver_(nb::cast<PyReceiver&>(receiver_object_)),
        pending_(std::move(pending)) {}
  PyResults(const PyResults&) = delete;
  PyResults& operator=(const PyResults&) = delete;
  ~PyResults() {
    if (::getpid() != pid_) {  // a copy in a forked child: its messages and threads are another's
      (void)turns_.release();
      return;
    }
    for (auto& message : held_) drop_message(*receiver_.core, *message);
  }

  [[nodiscard]] Segment& core() const { return *receiver_.core; }
  nb::object receive(nb::handle timeout);
  bool wait_alone(nb::handle future, nb::handle task_id, nb::handle timeout);
  void recall();
  [[nodiscard]] bool is_awaited() const { return turns_->turn == Turn::kWaiter; }

  std::uint64_t settled = 0;  // futures completed here
  std::uint64_t alone = 0;    // of these, by who waited for it

 private:
  enum class Turn { kCollector, kNobody, kWaiter };

  nb::object next(nb::handle timeout);
  bool settle(const nb::object& message);
  void stand_aside();
  void count_message();

  nb::object receiver_object_;
  PyReceiver& receiver_;
  nb::dict pending_;                            // task: future
  std::deque<std::unique_ptr<Incoming>> held_;  // with the GIL; taken, for the collector

  /// Who has the turn. On the heap, because destroying it waits for those who wait in it: in a
  /// forked child there is nobody to come.
  struct Turns {
    std::mutex mutex;  // of all here; never held while waiting for the GIL
    std::condition_variable changed;
    std::atomic<Turn> turn = Turn::kCollector;  // written under the mutex
    bool recalled = false;
    bool tells = false;            // the collector waits until the waiter returns
    std::uint32_t served = 0;      // waits that had the turn
    std::uint32_t lone_waits = 0;  // waits that found the collector at it
    std::uint32_t seen_waits = 0;  // of these, before the last message
    std::uint32_t streak = 0;      // messages in a row that somebody waited for alone
    std::uint32_t needed = kLoneWaits;
  };
  std::unique_ptr<Turns> turns_ = std::make_unique<Turns>();
  const pid_t pid_ = ::getpid();
};

/// The collector's: completes what it can; None when it is time to look around.
nb::object PyResults::receive(nb::handle timeout) {
  require_seat(*receiver_.core);
  for (int done = 0; done < kBatch; ++done) {
    if (held_.empty() && turns_->streak >= turns_->needed && timeout.is_none()) stand_aside();
    nb::object message = next(timeout);
    if (!settle(message)) return message;
    if (PyDict_Size(pending_.ptr()) == 0) break;  // who closes the executor waits for this
  }
  return nb::none();
}

nb::object PyResults::next(nb::handle timeout) {
  if (!held_.empty()) {
    const std::unique_ptr<Incoming> message = std::move(held_.front());
    held_.pop_front();
    return decode_any(receiver_.segment, *receiver_.core, *message, receiver_.copies);
  }
  Incoming m;
  binding::receive(receiver_, m, until_of(timeout));
  count_message();
  return decode_any(receiver_.segment, *receiver_.core, m, receiver_.copies);
}

void PyResults::count_message() {
  Turns& t = *turns_;
  const std::lock_guard lock(t.mutex);
  t.streak = t.lone_waits != t.seen_waits ? t.streak + 1 : 0;
  t.seen_waits = t.lone_waits;
}

/// Completes the future of a result (N2). False: it takes more than that.
bool PyResults::settle([[maybe_unused]] const nb::object& message) {
#ifdef Py_GIL_DISABLED
  return false;
#else
  if (!PyTuple_CheckExact(message.ptr()) || PyTuple_GET_SIZE(message.ptr()) != 3) return false;
  PyObject* const task_id = PyTuple_GET_ITEM(message.ptr(), 0);
  PyObject* const status = PyTuple_GET_ITEM(message.ptr(), 1);
  if (!PyLong_CheckExact(task_id) || !PyLong_CheckExact(status) || PyLong_AsLong(status) != 0)
    return false;
  PyObject* const found = PyDict_GetItemWithError(pending_.ptr(), task_id);
  if (found == nullptr) return false;
  const nb::object future = nb::borrow(found);
  const Names& n = names();
  if (!attribute(found, n.plain).is(nb::handle(Py_True))) return false;
  const nb::object call = attribute(found, n.call);
  set_attribute(found, n.result, PyTuple_GET_ITEM(message.ptr(), 2));
  set_attribute(found, n.state, n.finished);  // the last: who sees it reads the result
  if (PyDict_DelItem(pending_.ptr(), task_id) != 0) throw nb::python_error();
  ++settled;
  if (!call.is_none()) set_attribute(found, n.call, Py_None);
  return true;
#endif
}

void PyResults::stand_aside() {
  Turns& t = *turns_;
  const WithoutGil released;
  std::unique_lock lock(t.mutex);
  t.turn = Turn::kNobody;
  t.recalled = false;
  for (;;) {
    const std::uint32_t served = t.served;
    t.changed.wait_for(lock, kAside, [&] { return t.recalled && t.turn == Turn::kNobody; });
    if (t.turn == Turn::kWaiter) {  // for longer
      t.tells = true;
      t.changed.wait(lock, [&] { return t.turn == Turn::kNobody; });
      t.tells = false;
      if (!t.recalled) continue;
    }
    if (t.recalled || served == t.served) break;
  }
  t.turn = Turn::kCollector;
  t.streak = 0;
}

void PyResults::recall() {
  Turns& t = *turns_;
  const std::lock_guard lock(t.mutex);
  t.recalled = true;
  if (t.turn != Turn::kCollector) t.changed.notify_one();
}

/// Waits for the only call that is pending. True if its future was completed here.
bool PyResults::wait_alone(nb::handle future, nb::handle task_id, nb::handle timeout) {
  Turns& t = *turns_;
  const std::int64_t until = until_of(timeout);
  if (PyDict_Size(pending_.ptr()) != 1) {
    recall();
    return false;
  }
  {
    const std::lock_guard lock(t.mutex);
    if (t.turn != Turn::kNobody) {
      if (t.turn == Turn::kCollector) ++t.lone_waits;
      return false;
    }
    t.turn = Turn::kWaiter;
    ++t.served;
  }
  struct GiveBack {
    PyResults& r;
    bool recalls = false;
    ~GiveBack() {
      const std::lock_guard lock(r.turns_->mutex);
      r.turns_->turn = Turn::kNobody;
      r.turns_->recalled |= recalls;
      if (r.turns_->recalled || r.turns_->tells) r.turns_->changed.notify_one();
    }
  } turn{*this};
  // From here on whoever withdraws the call sees that we wait.
  const auto is_pending = [&] {
    return PyDict_GetItemWithError(pending_.ptr(), task_id.ptr()) == future.ptr();
  };
  if (!is_pending()) return false;
  do {
    auto message = std::make_unique<Incoming>();
    const Status status = try_then_wait(receiver_, *message, until);
    if (status == Status::kEmpty) return false;
    turn.recalls = true;                      // unless we can complete it
    if (status != Status::kOk) return false;  // the collector will say what
    bool is_settled = false;
    if (message->kind == RecordKind::kNative && message->block_count == 0) {
      try {
        is_settled = settle(decode_any(receiver_.segment, *receiver_.core, *message));
      } catch (...) {
        held_.push_back(std::move(message));
        throw;
      }
    }
    if (!is_settled) {
      held_.push_back(std::move(message));
      const std::lock_guard lock(t.mutex);
      t.needed = std::min(t.needed * 2, kLoneWaitsMax);
      return false;
    }
    turn.recalls = false;
  } while (is_pending());
  ++alone;
  const std::lock_guard lock(t.mutex);
  t.needed = kLoneWaits;
  return true;
}

}  // namespace

void bind_results(nb::module_& m) {
  nb::class_<PyResults>(m, "Results",
                        "The results of an executor, received for the futures in *pending*.")
      .def(
          "__init__",
          [](PyResults* self, nb::object receiver, nb::dict pending) {
            if (!nb::isinstance<PyReceiver>(receiver))
              throw nb::type_error("Results needs a Receiver");
            new (self) PyResults(std::move(receiver), std::move(pending));
          },
          nb::arg("receiver"), nb::arg("pending"),
          nb::sig("def __init__(self, receiver: Receiver, pending: dict[int, Any]) -> None"))
      .def(
          "receive",
          [](PyResults& self, nb::handle timeout) {
            return run_whole(self.core(), [&] { return self.receive(timeout); });
          },
          nb::arg("timeout") = nb::none(),
          nb::sig("def receive(self, timeout: float | None = None) -> Any"),
          "Complete futures until something else comes, and return that, as `recv_object`.\n\n"
          "None: look around, for instance because nothing is pending any more. One thread\n"
          "alone calls this.")
      .def(
          "wait_alone", &PyResults::wait_alone, nb::arg("future"), nb::arg("task_id"),
          nb::arg("timeout").none(),
          nb::sig("def wait_alone(self, future: Any, task_id: int, timeout: float | None) -> bool"),
          "Wait for the only call that is pending, up to *timeout* seconds.\n\n"
          "True if its future is completed. False does not say that it is not: it is the\n"
          "collector's business now.")
      .def("recall", &PyResults::recall, "Have the collector take the next message.")
      .def_prop_ro("is_awaited", &PyResults::is_awaited,
                   "Whether a thread is in `wait_alone`, which only a message ends.")
      .def_ro("settled", &PyResults::settled, "How many futures were completed here.")
      .def_ro("alone", &PyResults::alone, "How many of these in `wait_alone`.");
}

}  // namespace ipcbuf::binding
