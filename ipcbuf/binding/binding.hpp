// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// binding.hpp - what the files of the binding share. The binding translates: arguments in,
// results and exceptions out, the GIL released around whatever may wait. It decides nothing
// about shared memory.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/directory.hpp"
#include "ipcbuf/named.hpp"
#include "ipcbuf/segment.hpp"

namespace nb = nanobind;

namespace ipcbuf::binding {

// ---- one class per file ----
void bind_segment(nb::module_& m);
void bind_named(nb::module_& m);
void bind_record(nb::module_& m);
void bind_ticket(nb::module_& m);
void bind_sender(nb::module_& m);
void bind_receiver(nb::module_& m);
void bind_task(nb::module_& m);
void bind_lease(nb::module_& m);
void bind_object_queue(nb::module_& m);
void bind_codec(nb::module_& m);
void bind_results(nb::module_& m);
void bind_wait(nb::module_& m);

/// Somebody asked a closed segment; ClosedError. Thrown without the GIL, too.
struct SegmentClosed : std::exception {};

/// A segment until it is closed. A call that releases the GIL takes a copy of the pointer first:
/// another thread may close meanwhile.
class OpenCore {
 public:
  explicit OpenCore(std::shared_ptr<Segment> core, bool by_name)
      : core_(std::move(core)), by_name_(by_name) {}
  OpenCore(const OpenCore&) = delete;
  OpenCore& operator=(const OpenCore&) = delete;
  ~OpenCore() { close(); }

  [[nodiscard]] std::shared_ptr<Segment> get() const;
  operator std::shared_ptr<Segment>() const { return get(); }  // NOLINT: it stands for it
  std::shared_ptr<Segment> operator->() const { return get(); }
  Segment& operator*() const { return *get(); }
  [[nodiscard]] bool is_closed() const;
  void close() noexcept;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Segment> core_;
  const bool by_name_;
};

struct PySegment {
  PySegment(std::shared_ptr<Segment> segment, bool by_name) : core(std::move(segment), by_name) {}
  OpenCore core;
  /// The ends that were opened through this object, which its `close` closes.
  std::mutex ends_mutex;
  std::vector<Endpoint*> ends;

  void close();
};

/// An end in the list of its segment's object, as long as both exist.
class EndListed {
 public:
  EndListed(const nb::object& segment, Endpoint& end)
      : segment_(nb::cast<PySegment&>(segment)), end_(end) {
    const std::lock_guard lock(segment_.ends_mutex);
    segment_.ends.push_back(&end);
  }
  EndListed(const EndListed&) = delete;
  EndListed& operator=(const EndListed&) = delete;
  ~EndListed() {
    const std::lock_guard lock(segment_.ends_mutex);
    std::erase(segment_.ends, &end_);
    end_.close();
  }

 private:
  PySegment& segment_;
  Endpoint& end_;
};
// Parts of `Segment`, with the classes that they return.
void bind_directory(nb::class_<PySegment>& segment);
void bind_static(nb::module_& m, nb::class_<PySegment>& segment);
void bind_atomic(nb::module_& m, nb::class_<PySegment>& segment);
void bind_diagnosis(nb::class_<PySegment>& segment);

/// A block that Python has: freed with the last reference, pinned by live buffers. Behind a ticket
/// it is a shared block; what came as a small message has its bytes in private memory.
class PyRecord {
 public:
  /// Takes over a block that this process holds.
  PyRecord(nb::object segment, std::uint64_t block, std::uint64_t length);
  /// A copy in private memory.
  PyRecord(nb::object segment, const void* bytes, std::size_t length);
  PyRecord(const PyRecord&) = delete;
  PyRecord& operator=(const PyRecord&) = delete;
  ~PyRecord() { free(); }

  [[nodiscard]] Segment& core() const { return *core_; }
  [[nodiscard]] nb::object segment() const { return segment_; }
  [[nodiscard]] const std::shared_ptr<Segment>& core_pointer() const { return core_; }
  [[nodiscard]] bool is_released() const noexcept { return data_ == nullptr; }
  [[nodiscard]] bool is_private() const noexcept { return own_ != nullptr; }
  [[nodiscard]] bool is_shared() const noexcept { return behind_ticket_; }
  /// True if the block can have a ticket.
  [[nodiscard]] bool is_shareable() const noexcept { return view_.block != 0 && !view_.pinned; }
  [[nodiscard]] std::uint64_t block() const noexcept { return view_.block; }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  /// Raises BufferError while views exist, ValueError once released.
  void require_no_views() const;
  void release();
  /// The block leaves this object; its new keeper frees it.
  std::uint64_t take();
  /// Undoes `take`, if the block was not handed over after all.
  void put_back(std::uint64_t block);
  /// True if the block is this process's alone, so that it can be handed on without a copy.
  [[nodiscard]] bool is_movable() const;

  Py_ssize_t exports = 0;

 private:
  void free() noexcept;

  nb::object segment_;
  std::shared_ptr<Segment> core_;
  LiveView view_;
  std::uint64_t length_;
  std::byte* data_ = nullptr;  // nullptr: released, or sent
  std::byte* sent_ = nullptr;
  std::unique_ptr<std::byte[]> own_;
  bool behind_ticket_ = false;
};

/// A ticket that has not been sent: freed with this object, unless somebody has its bytes.
class PyTicket {
 public:
  explicit PyTicket(const PyRecord& record);
  PyTicket(const PyTicket&) = delete;
  PyTicket& operator=(const PyTicket&) = delete;
  ~PyTicket();

  [[nodiscard]] const Segment& core() const { return *core_; }
  [[nodiscard]] std::uint64_t block() const noexcept { return block_; }
  [[nodiscard]] void* text() const noexcept { return core_->payload(block_); }
  void offer() noexcept;
  /// The ticket leaves this object; its new keeper frees it.
  std::uint64_t take() noexcept;

  bool beside = false;
  std::uint64_t length = 0;  // of the block it stands for

 private:
  std::shared_ptr<Segment> core_;
  std::uint64_t block_ = 0;
  bool offered_ = false;
};
/// The ticket that exports this buffer, or nullptr.
[[nodiscard]] PyTicket* ticket_behind(PyObject* exporter) noexcept;

struct PyMoving {
  nb::object record;
};

struct PySender {
  nb::object segment;
  std::shared_ptr<Segment> core;
  SenderEnd end;
  EndListed listed;  // the last member: its destructor closes `end`
  PySender(nb::object s, std::shared_ptr<Segment> c, std::uint32_t id)
      : segment(std::move(s)), core(std::move(c)), end(*core, id), listed(segment, end) {}
};

struct PyReceiver {
  nb::object segment;
  std::shared_ptr<Segment> core;
  ReceiverEnd end;
  bool copies = false;  // of objects: large buffers go to private memory
  EndListed listed;     // the last member: its destructor closes `end`
  PyReceiver(nb::object s, std::shared_ptr<Segment> c, std::uint32_t id)
      : segment(std::move(s)), core(std::move(c)), end(*core, id), listed(segment, end) {}
};

class PyTask {
 public:
  PyTask(const nb::object& segment, Incoming& message, std::uint64_t id);
  [[nodiscard]] nb::object load() const;
  void release() { records_.clear(); }

  const std::uint64_t task_id;

 private:
  RecordKind kind_;
  std::uint8_t tag_;
  std::vector<nb::object> records_;  // payload, then the buffers beside it
};

/// A message that goes back to its channel unless somebody says that it is done.
class PyLeased {
 public:
  PyLeased(nb::object segment, const Incoming& message);
  PyLeased(const PyLeased&) = delete;
  PyLeased& operator=(const PyLeased&) = delete;
  ~PyLeased();

  [[nodiscard]] nb::object load() const;
  [[nodiscard]] bool is_over() const noexcept { return over_ || view_.block == 0; }
  /// The message's bytes, for the buffer protocol. False with an exception: there are none.
  [[nodiscard]] bool look(const std::byte*& bytes, Py_ssize_t& length) const;
  void done();
  void give_back();
  void add_export();
  void drop_export();

  const bool is_redelivered;

 private:
  void require_ours() const;
  [[nodiscard]] bool is_ours() const;
  void let_go() noexcept;

  nb::object segment_;
  std::shared_ptr<Segment> core_;
  LiveView view_;
  std::uint64_t length_;
  Lease lease_;
  Token token_;
  Py_ssize_t exports_ = 0;
  bool over_ = false;
};

// ---- errors.cpp: the one table from Status to exception ----
enum class Flavour {
  kNative,  // the exceptions of ipcbuf.errors
  kQueue,   // queue.Empty and queue.Full themselves
};
/// The exception of Flavour::kQueue for a queue that was shut down.
void set_queue_end(nb::object type);
[[noreturn]] void raise_status(Status status, const Failure& why = {},
                               Flavour flavour = Flavour::kNative);
inline void check(Status status, const Failure& why = {}) {
  if (status != Status::kOk) raise_status(status, why);
}
/// The same for a file: with its path, the numbers, and what to do.
[[noreturn]] void raise_named(const NamedFailure& why);
/// SegmentTruncated, with the numbers.
[[noreturn]] void raise_truncated(Segment& segment);
/// A call's answer counts only if the memory that it came from was there.
inline void require_whole(Segment& segment) {
  if (segment.is_truncated()) [[unlikely]]
    raise_truncated(segment);
}

/// Runs a call; SegmentTruncated instead of its result or exception if the file was cut short.
template <class Call>
auto run_whole(Segment& segment, Call&& call) {
  try {
    if constexpr (std::is_void_v<decltype(call())>) {
      call();
      require_whole(segment);
    } else {
      auto result = call();
      require_whole(segment);
      return result;
    }
  } catch (...) {
    require_whole(segment);
    throw;
  }
}
inline Segment& core_of(const PySender& self) { return *self.core; }
inline Segment& core_of(const PyReceiver& self) { return *self.core; }

template <auto function>
struct Whole;
template <class R, class Self, class... Args, R (*function)(Self&, Args...)>
struct Whole<function> {
  static R call(Self& self, Args... args) {
    return run_whole(core_of(self), [&] { return function(self, args...); });
  }
};
/// The same, of a function whose first argument is a `self` with a segment.
template <auto function>
inline constexpr auto whole = &Whole<function>::call;

/// For calls that need a hold: the table that may be full is that of shared entries.
inline void check_hold(Segment& segment, Status status) {
  Failure why;
  why.reason = "shared entries";
  why.requested = segment.constants().max_entries;
  check(status, why);
}
/// Raises SegmentTruncated if the file was cut short, TooManyProcesses if a fork left this process
/// without a slot and none is free.
void require_seat(Segment& segment);

// ---- waiting.cpp ----
/// Releases the GIL for its lifetime. Behind the end of the interpreter the thread stays in the
/// destructor for ever: a daemon thread must not unwind through C++ frames.
class WithoutGil {
 public:
  WithoutGil() noexcept : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil();

 private:
  PyThreadState* state_;
};
[[nodiscard]] bool is_main_thread() noexcept;

/// None waits for ever, numbers are seconds from now; what is below zero does not wait.
[[nodiscard]] std::int64_t until_of(nb::handle timeout);
[[nodiscard]] std::int64_t until_of(bool block, nb::handle timeout);

/// Calls `step()` without the GIL until it answers something but kSlice; runs Python's signal
/// handlers in between, whose exception ends the wait.
template <class Step>
Status run_sliced(Step&& step) {
  const bool runs_signals = is_main_thread();
  for (;;) {
    Status status = Status::kSlice;
    {
      const WithoutGil released;
      do {
        status = step();
      } while (status == Status::kSlice && !runs_signals);
    }
    if (status != Status::kSlice) return status;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
}

/// The same for `step(wait)` at one end.
template <class Step>
Status wait_for(Endpoint& end, Step&& step) {
  struct Finish {
    Endpoint& e;
    Wait wait;
    ~Finish() { e.finish_wait(wait); }
  } finish{end, {}};
  return run_sliced([&] { return step(finish.wait); });
}

/// What `ipcbuf._async.<name>(...)` returns: the parts that need an event loop are Python.
template <class... Args>
nb::object in_event_loop(const char* name, Args&&... arguments) {
  return nb::module_::import_("ipcbuf._async").attr(name)(std::forward<Args>(arguments)...);
}

/// A descriptor that reads ready while the end is, for `fileno()`.
int descriptor_of(Endpoint& end);

/// Sends or raises. The blocks of the message are the channel's, or freed.
void send(PySender& sender, Outgoing& message, std::int64_t until,
          Flavour flavour = Flavour::kNative);
/// Receives: at once with the GIL held, else waits without it.
[[nodiscard]] Status try_then_wait(PyReceiver& receiver, Incoming& message, std::int64_t until);
/// The same, or raises.
void receive(PyReceiver& receiver, Incoming& message, std::int64_t until,
             Flavour flavour = Flavour::kNative);

// ---- directory.cpp: channels by key ----
/// TypeError or ValueError, with the numbers, for what cannot be a key.
ChannelKey key_from(nb::handle object);
nb::object key_to(const ChannelKey& key);
/// Makes or joins; raises what is refused. This process holds the end of one object then.
std::uint32_t join(Segment& core, nb::handle key, JoinRequest& request);
/// Handles of the living at an end of the channel of `self`, which is not closed here.
template <class PyEnd>
std::uint64_t peers(PyEnd& self, End end) {
  require_seat(*self.core);
  if (self.end.is_closed()) raise_status(Status::kClosed);
  const WithoutGil released;
  return count_users(*self.core, self.end.id(), end);
}

// ---- codec.cpp: objects to messages and back ----
struct Encoded;
/// Blocks on their way into a message: freed again if it is never sent.
class Blocks {
 public:
  explicit Blocks(Segment& segment) noexcept : s_(segment) {}
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;
  ~Blocks();
  /// A new block with a copy of the bytes, as the next block of `message`.
  std::uint64_t add(Outgoing& message, const void* bytes, std::size_t length);
  /// The ticket itself, as the next block of `message`.
  void add(Outgoing& message, PyTicket& ticket) noexcept;
  /// What belongs beside an encoded object.
  void add_buffers(Outgoing& message, const std::vector<Py_buffer>& buffers);
  /// The whole message in one block, as a leased channel has it (docs/layout.md).
  void add_leased(Outgoing& message, const Encoded& object);
  void sent() noexcept { count_ = 0; }

 private:
  Segment& s_;
  std::uint32_t count_ = 0;
  std::uint64_t offsets_[kMaxBlocks];
};

/// The bytes of an encoded object; `keep` holds what they lie in.
struct Encoded {
  RecordKind kind = RecordKind::kNative;
  std::uint8_t tag = 0;  // of a large bytes or str, whose bytes go alone into a block
  const void* payload = nullptr;
  std::size_t size = 0;
  nb::object keep;
  Py_buffer view{};
  std::vector<Py_buffer> buffers;
  std::byte small[kMaxInline];

  Encoded() = default;
  Encoded(const Encoded&) = delete;
  Encoded& operator=(const Encoded&) = delete;
  ~Encoded();
  void drop_buffers() noexcept;
};
void encode(PyObject* object, Encoded& out);
void send_object(PySender& sender, PyObject* object, std::int64_t until,
                 Flavour flavour = Flavour::kNative);
/// The object of a message that was received; its blocks are taken over.
nb::object decode(const nb::object& segment, Segment& core, Incoming& message, bool copies = false);
/// Raises: what is delivered again cannot give its memory away.
[[noreturn]] void refuse_leased();
/// The object of a leased message, from a private copy; the message stays as it is.
nb::object decode_leased(const Lease& lease, const std::byte* block, std::uint64_t length);
/// As `decode`; a raw message is unpickled.
nb::object decode_any(const nb::object& segment, Segment& core, Incoming& message,
                      bool copies = false);
nb::object decode_payload(RecordKind kind, std::uint8_t tag, nb::handle payload, const void* bytes,
                          std::size_t size, nb::handle buffers);
/// As bytes: of a raw message its own, of an object its pickle.
nb::object as_bytes(const nb::object& segment, Segment& core, Incoming& message);
/// Frees the blocks of a message nobody wants.
void drop_message(Segment& core, Incoming& message) noexcept;

std::uint64_t allocate(Segment& core, std::uint64_t length);
void copy_bytes(void* to, const void* from, std::size_t n);

}  // namespace ipcbuf::binding
