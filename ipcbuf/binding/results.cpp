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
    for (auto& message : held_) drop_message(*receiver_.core, *message);
  }

  [[nodiscard]] Segment& core() const { return *receiver_.core; }
  nb::object receive(nb::handle timeout);
  bool wait_alone(nb::handle future, nb::handle task_id, nb::handle timeout);
  void recall();
  [[nodiscard]] bool is_awaited() const { return turn_ == Turn::kWaiter; }

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

  std::mutex mutex_;  // of what follows; never held while waiting for the GIL
  std::condition_variable changed_;
  std::atomic<Turn> turn_ = Turn::kCollector;  // written under the mutex
  bool recalled_ = false;
  bool tells_ = false;            // the collector waits until the waiter returns
  std::uint32_t served_ = 0;      // waits that had the turn
  std::uint32_t lone_waits_ = 0;  // waits that found the collector at it
  std::uint32_t seen_waits_ = 0;  // of these, before the last message
  std::uint32_t streak_ = 0;      // messages in a row that somebody waited for alone
  std::uint32_t needed_ = kLoneWaits;
};

/// The collector's: completes what it can; None when it is time to look around.
nb::object PyResults::receive(nb::handle timeout) {
  require_seat(*receiver_.core);
  for (int done = 0; done < kBatch; ++done) {
    if (held_.empty() && streak_ >= needed_ && timeout.is_none()) stand_aside();
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
  const std::lock_guard lock(mutex_);
  streak_ = lone_waits_ != seen_waits_ ? streak_ + 1 : 0;
  seen_waits_ = lone_waits_;
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
  const WithoutGil released;
  std::unique_lock lock(mutex_);
  turn_ = Turn::kNobody;
  recalled_ = false;
  for (;;) {
    const std::uint32_t served = served_;
    changed_.wait_for(lock, kAside, [&] { return recalled_ && turn_ == Turn::kNobody; });
    if (turn_ == Turn::kWaiter) {  // for longer
      tells_ = true;
      changed_.wait(lock, [&] { return turn_ == Turn::kNobody; });
      tells_ = false;
      if (!recalled_) continue;
    }
    if (recalled_ || served == served_) break;
  }
  turn_ = Turn::kCollector;
  streak_ = 0;
}

void PyResults::recall() {
  const std::lock_guard lock(mutex_);
  recalled_ = true;
  if (turn_ != Turn::kCollector) changed_.notify_one();
}

/// Waits for the only call that is pending. True if its future was completed here.
bool PyResults::wait_alone(nb::handle future, nb::handle task_id, nb::handle timeout) {
  const std::int64_t until = until_of(timeout);
  if (PyDict_Size(pending_.ptr()) != 1) {
    recall();
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    if (turn_ != Turn::kNobody) {
      if (turn_ == Turn::kCollector) ++lone_waits_;
      return false;
    }
    turn_ = Turn::kWaiter;
    ++served_;
  }
  struct GiveBack {
    PyResults& r;
    bool recalls = false;
    ~GiveBack() {
      const std::lock_guard lock(r.mutex_);
      r.turn_ = Turn::kNobody;
      r.recalled_ |= recalls;
      if (r.recalled_ || r.tells_) r.changed_.notify_one();
    }
  } turn{*this};
  // From here on whoever withdraws the call sees that we wait.
  if (PyDict_GetItemWithError(pending_.ptr(), task_id.ptr()) != future.ptr()) return false;
  auto message = std::make_unique<Incoming>();
  Status status = receiver_.end.try_receive(*message, 0);
  if (status == Status::kEmpty || status == Status::kContended)
    status = wait_for(receiver_.end, [&](Wait& wait) {
      return receiver_.end.receive_slice(*message, until, wait);
    });
  if (status == Status::kEmpty) return false;
  turn.recalls = true;                      // unless it is ours
  if (status != Status::kOk) return false;  // the collector will say what
  bool is_ours = false;
  if (message->kind == RecordKind::kNative && message->block_count == 0) {
    try {
      is_ours = settle(decode_any(receiver_.segment, *receiver_.core, *message));
    } catch (...) {
      held_.push_back(std::move(message));
      throw;
    }
  }
  if (!is_ours) held_.push_back(std::move(message));
  turn.recalls = !is_ours;
  alone += is_ours ? 1 : 0;
  const std::lock_guard lock(mutex_);
  needed_ = is_ours ? kLoneWaits : std::min(needed_ * 2, kLoneWaitsMax);
  return is_ours;
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
