// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// codec.cpp - objects to messages and back.
//
// Overview
//   Exact None, bool, int, float, complex, bytes, bytearray, str and small tuples, lists, dicts,
//   sets and frozensets of these have a tagged encoding of their own: a tag byte, then the value.
//   So have arrays of numbers (array.cpp). Everything else goes through the codec that
//   `set_object_codec` named (pickle where none did).
//
// Identity inside one message is kept as pickle keeps it: a container, str, bytes or bytearray
// object that occurs twice, or within itself, sends the whole message through pickle.
#include <cstring>

#include "array.hpp"
#include "binding.hpp"
#include "ipcbuf/block.hpp"
#include "ipcbuf/copy.hpp"
#include "ipcbuf/thread_heap.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf::binding {

namespace {

// Kept for the life of the process, also while modules are torn down.
PyObject* codec_dumps = nullptr;
PyObject* codec_loads = nullptr;
PyObject* codec_dump_bytes = nullptr;
PyObject* codec_reducers = nullptr;  // a tuple of dictionaries; nullptr: arrays are the codec's

constexpr int kDepth = 16;
constexpr std::size_t kReleaseGil = 64U << 10;  // bytes: a copy that is worth it

enum Tag : std::uint8_t {
  kNone = 'N',
  kTrue = 'T',
  kFalse = 'F',
  kInt = 'i',
  kBigInt = 'I',  // of more than 64 bits: its bytes, the lowest first, in two's complement
  kFloat = 'f',
  kComplex = 'c',
  kBytes = 'b',
  kByteArray = 'a',
  kStr = 's',
  kTuple = '(',
  kList = '[',
  kDict = '{',
  kSet = '<',
  kFrozenSet = '>',
  kArray = 'n',        // of numpy, with its bytes
  kArrayBeside = 'm',  // its bytes are the next block
};
constexpr std::size_t kInlineArray = 1024;  // bytes

/// Whether somebody registered a reducer for the type. Runs no Python code: an encoder that is at
/// work has no references of its own to what it walks through.
bool has_reducer(PyTypeObject* type) noexcept {
  if (codec_reducers == nullptr) return true;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(codec_reducers); ++i) {
    const int found =
        PyDict_Contains(PyTuple_GET_ITEM(codec_reducers, i), reinterpret_cast<PyObject*>(type));
    if (found < 0) PyErr_Clear();
    if (found != 0) return true;
  }
  return false;
}

// The number of bytes that an int takes with its sign, and the bytes. Python 3.13 has it in public.
#if PY_VERSION_HEX >= 0x030D0000
constexpr int kLittle = Py_ASNATIVEBYTES_LITTLE_ENDIAN;
Py_ssize_t int_size(PyObject* o) noexcept { return PyLong_AsNativeBytes(o, nullptr, 0, kLittle); }
bool int_to_bytes(PyObject* o, std::byte* out, Py_ssize_t n) noexcept {
  return PyLong_AsNativeBytes(o, out, n, kLittle) == n;
}
PyObject* int_from_bytes(const char* bytes, std::size_t n) noexcept {
  return PyLong_FromNativeBytes(bytes, n, kLittle);
}
#else
Py_ssize_t int_size(PyObject* o) noexcept {
  const std::size_t bits = _PyLong_NumBits(o);
  return bits < kMaxInline * 8 ? static_cast<Py_ssize_t>(bits / 8 + 1) : -1;
}
bool int_to_bytes(PyObject* o, std::byte* out, Py_ssize_t n) noexcept {
  return _PyLong_AsByteArray(reinterpret_cast<PyLongObject*>(o),
                             reinterpret_cast<unsigned char*>(out), static_cast<std::size_t>(n), 1,
                             1) == 0;
}
PyObject* int_from_bytes(const char* bytes, std::size_t n) noexcept {
  return _PyLong_FromByteArray(reinterpret_cast<const unsigned char*>(bytes), n, 1, 1);
}
#endif

/// Writes the tagged encoding into a fixed buffer; false: not for us, pickle it.
class Encoder {
 public:
  Encoder(std::byte* out, std::vector<Py_buffer>& beside) noexcept
      : begin_(out), at_(out), end_(out + kMaxInline), beside_(beside) {}

  [[nodiscard]] bool put(PyObject* o, int depth = 0) noexcept {
    PyTypeObject* const type = Py_TYPE(o);
    if (type == &PyLong_Type) {
      int overflow = 0;
      const long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
      return overflow == 0 ? value(kInt, &v, sizeof v) : big_int(o);
    }
    if (type == &PyUnicode_Type) return text(o);
    if (type == &PyFloat_Type) {
      const double v = PyFloat_AS_DOUBLE(o);
      return value(kFloat, &v, sizeof v);
    }
    if (o == Py_None) return value(kNone, nullptr, 0);
    if (o == Py_True) return value(kTrue, nullptr, 0);
    if (o == Py_False) return value(kFalse, nullptr, 0);
    if (type == &PyBytes_Type) {
      const Py_ssize_t n = PyBytes_GET_SIZE(o);
      return (n < 2 || is_new(o)) && sized(kBytes, PyBytes_AS_STRING(o), n);
    }
    if (type == &PyComplex_Type) {
      const Py_complex v = PyComplex_AsCComplex(o);
      const double parts[2] = {v.real, v.imag};
      return value(kComplex, parts, sizeof parts);
    }
    if (type == &PyByteArray_Type)
      return is_new(o) && sized(kByteArray, PyByteArray_AS_STRING(o), PyByteArray_GET_SIZE(o));
    if (depth == kDepth) return false;
    if (type == &PyTuple_Type) {
      const Py_ssize_t n = PyTuple_GET_SIZE(o);
      if ((n != 0 && !is_new(o)) || !count(kTuple, n)) return false;
      for (Py_ssize_t i = 0; i < n; ++i)
        if (!put(PyTuple_GET_ITEM(o, i), depth + 1)) return false;
      return true;
    }
    if (type == &PyList_Type) {
      const Py_ssize_t n = PyList_GET_SIZE(o);
      if (!is_new(o) || !count(kList, n)) return false;
      for (Py_ssize_t i = 0; i < n && i < PyList_GET_SIZE(o); ++i)
        if (!put(PyList_GET_ITEM(o, i), depth + 1)) return false;
      return PyList_GET_SIZE(o) == n;
    }
    if (type == &PyDict_Type) {
      const Py_ssize_t n = PyDict_GET_SIZE(o);
      if (!is_new(o) || !count(kDict, n)) return false;
      PyObject* key = nullptr;
      PyObject* item = nullptr;
      Py_ssize_t seen = 0;
      for (Py_ssize_t i = 0; PyDict_Next(o, &i, &key, &item) != 0; ++seen)
        if (!put(key, depth + 1) || !put(item, depth + 1)) return false;
      return seen == n;
    }
    if (type == &PySet_Type) return is_new(o) && members(kSet, o, depth);
    if (type == &PyFrozenSet_Type)
      return (PySet_GET_SIZE(o) == 0 || is_new(o)) && members(kFrozenSet, o, depth);
    return is_array(type) && array(o);
  }
  [[nodiscard]] std::size_t size() const noexcept { return static_cast<std::size_t>(at_ - begin_); }

 private:
  [[nodiscard]] bool value(Tag tag, const void* bytes, std::size_t n) noexcept {
    if (static_cast<std::size_t>(end_ - at_) < n + 1) return false;
    *at_++ = static_cast<std::byte>(tag);
    if (n != 0) std::memcpy(at_, bytes, n);
    at_ += n;
    return true;
  }
  [[nodiscard]] bool count(Tag tag, Py_ssize_t n) noexcept {
    const auto small = static_cast<std::uint32_t>(n);
    return n <= static_cast<Py_ssize_t>(kMaxInline) && value(tag, &small, sizeof small);
  }
  [[nodiscard]] bool sized(Tag tag, const char* bytes, Py_ssize_t n) noexcept {
    if (n < 0 || n > end_ - at_ || !count(tag, n)) return false;
    if (n > end_ - at_) return false;
    std::memcpy(at_, bytes, static_cast<std::size_t>(n));
    at_ += n;
    return true;
  }
  [[nodiscard]] bool big_int(PyObject* o) noexcept {
    const Py_ssize_t n = int_size(o);
    if (n < 0 || n > end_ - at_ || !count(kBigInt, n) || n > end_ - at_ ||
        !int_to_bytes(o, at_, n)) {
      PyErr_Clear();
      return false;
    }
    at_ += n;
    return true;
  }
  [[nodiscard]] bool members(Tag tag, PyObject* set, int depth) noexcept {
    const Py_ssize_t n = PySet_GET_SIZE(set);
    PyObject* const iterator = count(tag, n) ? PyObject_GetIter(set) : nullptr;
    bool fits = iterator != nullptr;
    Py_ssize_t seen = 0;
    while (fits) {
      PyObject* const item = PyIter_Next(iterator);
      if (item == nullptr) break;
      fits = put(item, depth + 1);  // the set keeps it alive
      Py_DECREF(item);
      ++seen;
    }
    Py_XDECREF(iterator);
    PyErr_Clear();  // another thread has changed it
    return fits && seen == n;
  }
  [[nodiscard]] bool text(PyObject* o) noexcept {
    Py_ssize_t n = 0;
    const char* utf8 = nullptr;
    if (PyUnicode_IS_COMPACT_ASCII(o)) {
      n = PyUnicode_GET_LENGTH(o);
      utf8 = static_cast<const char*>(PyUnicode_DATA(o));
    } else {
      utf8 = PyUnicode_AsUTF8AndSize(o, &n);
      if (utf8 == nullptr) {  // lone surrogates
        PyErr_Clear();
        return false;
      }
    }
    return (n < 2 || is_new(o)) && sized(kStr, utf8, n);
  }
  [[nodiscard]] bool array(PyObject* o) noexcept {
    ArrayHead head{};
    Py_buffer bytes{};
    if (has_reducer(Py_TYPE(o)) || !is_new(o) || !read_array(o, head, bytes)) return false;
    const auto size = static_cast<std::size_t>(bytes.len);
    const bool inside = size <= kInlineArray;
    const std::size_t shape = head.dimensions * sizeof(std::int64_t);
    const auto length = static_cast<std::uint32_t>(size);
    const std::size_t needed = 1 + sizeof head + shape + (inside ? sizeof length + size : 0);
    if (static_cast<std::size_t>(end_ - at_) < needed ||
        (!inside && beside_.size() == kMaxBlocks - 1)) {
      PyBuffer_Release(&bytes);
      return false;
    }
    (void)value(inside ? kArray : kArrayBeside, &head, sizeof head);
    static_assert(sizeof(Py_ssize_t) == sizeof(std::int64_t));
    if (shape != 0) std::memcpy(at_, bytes.shape, shape);
    at_ += shape;
    if (!inside) {
      beside_.push_back(bytes);
      return true;
    }
    std::memcpy(at_, &length, sizeof length);
    if (size != 0) std::memcpy(at_ + sizeof length, bytes.buf, size);
    at_ += sizeof length + size;
    PyBuffer_Release(&bytes);
    return true;
  }
  /// False if the object occurred before in this message, or there are too many to remember.
  [[nodiscard]] bool is_new(PyObject* o) noexcept {
    for (int i = 0; i < known_; ++i)
      if (objects_[i] == o) return false;
    if (known_ == kKnown) return false;
    objects_[known_++] = o;
    return true;
  }

  static constexpr int kKnown = 48;
  std::byte* begin_;
  std::byte* at_;
  std::byte* end_;
  std::vector<Py_buffer>& beside_;
  int known_ = 0;
  PyObject* objects_[kKnown];
};

/// Reads the tagged encoding; nullptr with an exception if it is none.
class Decoder {
 public:
  /// `beside`: a tuple of what went into blocks, or nothing.
  Decoder(const void* bytes, std::size_t n, PyObject* beside = nullptr) noexcept
      : at_(static_cast<const char*>(bytes)), end_(at_ + n), beside_(beside) {}

  PyObject* get(int depth = 0) noexcept {
    if (at_ == end_ || depth > kDepth) return malformed();
    switch (*at_++) {
      case kNone:
        return Py_NewRef(Py_None);
      case kTrue:
        return Py_NewRef(Py_True);
      case kFalse:
        return Py_NewRef(Py_False);
      case kInt: {
        long long v = 0;
        return take(&v, sizeof v) ? PyLong_FromLongLong(v) : malformed();
      }
      case kBigInt: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        at_ += n;
        return int_from_bytes(at_ - n, static_cast<std::size_t>(n));
      }
      case kComplex: {
        double parts[2] = {};
        return take(parts, sizeof parts) ? PyComplex_FromDoubles(parts[0], parts[1]) : malformed();
      }
      case kFloat: {
        double v = 0;
        return take(&v, sizeof v) ? PyFloat_FromDouble(v) : malformed();
      }
      case kBytes: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        at_ += n;
        return PyBytes_FromStringAndSize(at_ - n, n);
      }
      case kByteArray: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        at_ += n;
        return PyByteArray_FromStringAndSize(at_ - n, n);
      }
      case kStr: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        at_ += n;
        return PyUnicode_DecodeUTF8(at_ - n, n, nullptr);
      }
      case kTuple: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        PyObject* tuple = PyTuple_New(n);
        for (Py_ssize_t i = 0; tuple != nullptr && i < n; ++i) {
          PyObject* item = get(depth + 1);
          if (item == nullptr) return Py_DECREF(tuple), nullptr;
          PyTuple_SET_ITEM(tuple, i, item);
        }
        return tuple;
      }
      case kList: {
        const Py_ssize_t n = length(1);
        if (n < 0) return malformed();
        PyObject* list = PyList_New(n);
        for (Py_ssize_t i = 0; list != nullptr && i < n; ++i) {
          PyObject* item = get(depth + 1);
          if (item == nullptr) return Py_DECREF(list), nullptr;
          PyList_SET_ITEM(list, i, item);
        }
        return list;
      }
      case kDict: {
        const Py_ssize_t n = length(2);
        if (n < 0) return malformed();
        PyObject* dict = PyDict_New();
        for (Py_ssize_t i = 0; dict != nullptr && i < n; ++i) {
          PyObject* key = get(depth + 1);
          PyObject* item = key == nullptr ? nullptr : get(depth + 1);
          const int failed = item == nullptr ? -1 : PyDict_SetItem(dict, key, item);
          Py_XDECREF(key);
          Py_XDECREF(item);
          if (failed != 0) return Py_DECREF(dict), nullptr;
        }
        return dict;
      }
      case kSet:
        return members(PySet_New(nullptr), depth);
      case kFrozenSet:
        return members(PyFrozenSet_New(nullptr), depth);
      case kArray:
      case kArrayBeside:
        return array(at_[-1] == kArrayBeside);
      default:
        return malformed();
    }
  }

 private:
  PyObject* members(PyObject* set, int depth) noexcept {
    const Py_ssize_t n = length(1);
    if (n < 0) return Py_XDECREF(set), malformed();
    for (Py_ssize_t i = 0; set != nullptr && i < n; ++i) {
      PyObject* const item = get(depth + 1);
      const int failed = item == nullptr ? -1 : PySet_Add(set, item);
      Py_XDECREF(item);
      if (failed != 0) return Py_DECREF(set), nullptr;
    }
    return set;
  }
  [[nodiscard]] bool take(void* out, std::size_t n) noexcept {
    if (static_cast<std::size_t>(end_ - at_) < n) return false;
    std::memcpy(out, at_, n);
    at_ += n;
    return true;
  }
  /// A count of things of at least `each` bytes; negative if the message is too short for them.
  [[nodiscard]] Py_ssize_t length(std::size_t each) noexcept {
    std::uint32_t n = 0;
    if (!take(&n, sizeof n) || n * each > static_cast<std::size_t>(end_ - at_)) return -1;
    return static_cast<Py_ssize_t>(n);
  }
  [[nodiscard]] PyObject* array(bool is_beside) noexcept {
    ArrayHead head{};
    if (!take(&head, sizeof head)) return malformed();
    const char* const shape = at_;
    const std::size_t lengths = head.dimensions * sizeof(std::int64_t);
    if (lengths > static_cast<std::size_t>(end_ - at_)) return malformed();
    at_ += lengths;
    PyObject* made = nullptr;
    if (is_beside) {
      if (beside_ == nullptr || next_ >= PyTuple_GET_SIZE(beside_)) return malformed();
      made = make_array(head, shape, PyTuple_GET_ITEM(beside_, next_++), nullptr, 0);
    } else {
      const Py_ssize_t size = length(1);
      if (size < 0) return malformed();
      made = make_array(head, shape, nullptr, at_, static_cast<std::size_t>(size));
      at_ += size;
    }
    return made != nullptr ? made : malformed();
  }
  PyObject* malformed() noexcept {
    if (PyErr_Occurred() == nullptr)
      PyErr_SetString(PyExc_ValueError, "a message does not decode: its bytes are damaged");
    return nullptr;
  }

  const char* at_;
  const char* end_;
  PyObject* beside_;
  Py_ssize_t next_ = 0;
};

nb::object hook(PyObject* given, const char* fallback) {
  if (given != nullptr) return nb::borrow(given);
  return nb::module_::import_("pickle").attr(fallback);
}

nb::object stolen(PyObject* o) {
  if (o == nullptr) throw nb::python_error();
  return nb::steal(o);
}

}  // namespace

void copy_bytes(void* to, const void* from, std::size_t n) {
  if (n < kReleaseGil) {
    std::memcpy(to, from, n);
    return;
  }
  const WithoutGil released;
  std::memcpy(to, from, n);
}

std::uint64_t allocate(Segment& core, std::uint64_t length) {
  require_seat(core);
  Failure why;
  std::uint64_t offset = 0;
  const Status status = ThreadHeap::of(core).allocate(length, offset, why);
  if (status != Status::kOk) raise_status(status, why);
  return offset;
}

Blocks::~Blocks() {
  for (std::uint32_t i = 0; i < count_; ++i) (void)free_block(s_, offsets_[i]);
}

std::uint64_t Blocks::add(Outgoing& message, const void* bytes, std::size_t length) {
  const std::uint64_t offset = allocate(s_, length);
  offsets_[count_++] = offset;
  message.blocks[message.block_count++] = {offset, length};
  if (length >= kLeastPastCache && ThreadHeap::of(s_).owned() >= kCached) {
    const WithoutGil released;
    copy_past_cache(s_.payload(offset), bytes, length);
  } else {
    copy_bytes(s_.payload(offset), bytes, length);
  }
  return offset;
}

void refuse_leased() {
  throw nb::value_error(
      "a channel with leases may deliver a message again, so it carries copies; "
      "send the array itself, not ipcbuf.move or ipcbuf.share of it");
}

namespace {

/// Parts of a leased message begin at a cache line, so that arrays in them are aligned.
constexpr std::uint64_t line_up(std::uint64_t n) noexcept {
  return (n + kCacheLine - 1) / kCacheLine * kCacheLine;
}

}  // namespace

void Blocks::add_leased(Outgoing& message, const Encoded& e) {
  message.kind = e.kind;
  message.payload_in_block = true;
  message.tag = e.tag;
  message.buffers = static_cast<std::uint8_t>(e.buffers.size());
  if (e.buffers.empty()) {
    add(message, e.payload, e.size);
    return;
  }
  for (const Py_buffer& b : e.buffers)
    if (ticket_behind(b.obj) != nullptr) refuse_leased();
  std::uint64_t lengths[kMaxBlocks + 1] = {e.size};
  std::uint64_t whole = line_up((e.buffers.size() + 1) * sizeof lengths[0]) + line_up(e.size);
  for (std::size_t i = 0; i < e.buffers.size(); ++i) {
    lengths[i + 1] = static_cast<std::uint64_t>(e.buffers[i].len);
    whole += line_up(lengths[i + 1]);
  }
  const std::uint64_t offset = allocate(s_, whole);
  offsets_[count_++] = offset;
  message.blocks[message.block_count++] = {offset, whole};
  std::byte* at = s_.payload(offset);
  std::memcpy(at, lengths, (e.buffers.size() + 1) * sizeof lengths[0]);
  at += line_up((e.buffers.size() + 1) * sizeof lengths[0]);
  copy_bytes(at, e.payload, e.size);
  at += line_up(e.size);
  for (const Py_buffer& b : e.buffers) {
    copy_bytes(at, b.buf, static_cast<std::size_t>(b.len));
    at += line_up(static_cast<std::uint64_t>(b.len));
  }
}

void Blocks::add(Outgoing& message, PyTicket& ticket) noexcept {
  const std::uint64_t length = ticket.length;
  const std::uint64_t offset = ticket.take();
  offsets_[count_++] = offset;
  // The shared block's length, because that is what the message keeps in memory.
  message.blocks[message.block_count++] = {offset, length};
}

void Blocks::add_buffers(Outgoing& message, const std::vector<Py_buffer>& buffers) {
  for (const Py_buffer& b : buffers) {
    PyTicket* const ticket = ticket_behind(b.obj);
    if (ticket != nullptr && &ticket->core() == &s_ && ticket->block() != 0) {
      add(message, *ticket);
      continue;
    }
    // A ticket of another segment goes as its bytes.
    if (ticket != nullptr) ticket->beside = false;
    add(message, b.buf, static_cast<std::size_t>(b.len));
  }
}

void Encoded::drop_buffers() noexcept {
  for (Py_buffer& b : buffers) PyBuffer_Release(&b);
  buffers.clear();
}

Encoded::~Encoded() {
  drop_buffers();
  if (view.obj != nullptr) PyBuffer_Release(&view);
}

void encode(PyObject* object, Encoded& out) {
  Encoder encoder(out.small, out.buffers);
  if (encoder.put(object)) {
    out.payload = out.small;
    out.size = encoder.size();
    return;
  }
  out.drop_buffers();
  learn_arrays();
  if (PyBytes_CheckExact(object)) {
    out.tag = kBytes;
    out.payload = PyBytes_AS_STRING(object);
    out.size = static_cast<std::size_t>(PyBytes_GET_SIZE(object));
    out.keep = nb::borrow(object);
    return;
  }
  if (PyUnicode_CheckExact(object)) {
    Py_ssize_t n = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(object, &n);
    if (utf8 != nullptr) {
      out.tag = kStr;
      out.payload = utf8;
      out.size = static_cast<std::size_t>(n);
      out.keep = nb::borrow(object);
      return;
    }
    PyErr_Clear();
  }
  out.kind = RecordKind::kPickle;
  nb::object payload;
  nb::object buffers = nb::none();
  if (codec_dumps != nullptr) {
    const nb::object both = nb::borrow(codec_dumps)(nb::handle(object));
    payload = both[0];
    buffers = both[1];
  } else {
    payload = nb::module_::import_("pickle").attr("dumps")(nb::handle(object), 5);
  }
  if (PyObject_GetBuffer(payload.ptr(), &out.view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  out.payload = out.view.buf;
  out.size = static_cast<std::size_t>(out.view.len);
  if (buffers.is_none()) return;
  for (const nb::handle buffer : buffers) {
    Py_buffer b{};
    if (PyObject_GetBuffer(buffer.ptr(), &b, PyBUF_CONTIG_RO) != 0) throw nb::python_error();
    out.buffers.push_back(b);
  }
  if (out.buffers.size() > kMaxBlocks - 1)
    throw nb::value_error("the codec gave more buffers than fit into one message");
}

void send_object(PySender& sender, PyObject* object, std::int64_t until, Flavour flavour) {
  Encoded e;
  encode(object, e);
  Outgoing m;
  Blocks blocks(*sender.core);
  m.kind = e.kind;
  if (sender.end.is_leased()) {
    blocks.add_leased(m, e);
    send(sender, m, until, flavour);
    blocks.sent();
    return;
  }
  if (e.tag != 0 || e.size > kMaxInline) {
    blocks.add(m, e.payload, e.size);
    m.payload_in_block = true;
    m.payload = &e.tag;
    m.payload_size = e.tag != 0 ? 1 : 0;
  } else {
    m.payload = e.payload;
    m.payload_size = static_cast<std::uint32_t>(e.size);
  }
  blocks.add_buffers(m, e.buffers);
  send(sender, m, until, flavour);
  blocks.sent();
}

void drop_message(Segment& core, Incoming& m) noexcept {
  if (m.lease != 0) end_lease(core, m.blocks[0].offset);
  for (std::uint32_t i = 0; i < m.block_count; ++i) (void)free_block(core, m.blocks[i].offset);
  m.block_count = 0;
}

namespace {

/// Frees the blocks of a message behind its decoding, also if that raises.
struct DropMessage {
  Segment& s;
  Incoming& m;
  ~DropMessage() { drop_message(s, m); }
};

}  // namespace

nb::object decode_leased(const Lease& lease, const std::byte* block, std::uint64_t length) {
  const auto kind = static_cast<RecordKind>(lease.kind);
  if (kind == RecordKind::kNative && lease.buffers == 0)
    return decode_payload(kind, lease.tag, nb::handle(), block, length, nb::handle());
  const std::size_t parts = std::size_t{lease.buffers} + 1;
  std::uint64_t at = 0;
  std::uint64_t lengths[256] = {length};
  if (parts > 1) {
    at = line_up(parts * sizeof lengths[0]);
    if (at > length) throw nb::value_error("a message does not decode: its bytes are damaged");
    std::memcpy(lengths, block, parts * sizeof lengths[0]);
  }
  nb::object payload;
  nb::object buffers = stolen(PyTuple_New(static_cast<Py_ssize_t>(parts - 1)));
  for (std::size_t i = 0; i < parts; ++i) {
    if (lengths[i] > length - at)
      throw nb::value_error("a message does not decode: its bytes are damaged");
    const auto size = static_cast<Py_ssize_t>(lengths[i]);
    if (i == 0) {
      payload = stolen(PyBytes_FromStringAndSize(nullptr, size));
      copy_bytes(PyBytes_AS_STRING(payload.ptr()), block + at, lengths[i]);
    } else {
      PyObject* const copy = PyByteArray_FromStringAndSize(nullptr, size);
      if (copy == nullptr) throw nb::python_error();
      PyTuple_SET_ITEM(buffers.ptr(), static_cast<Py_ssize_t>(i - 1), copy);
      copy_bytes(PyByteArray_AS_STRING(copy), block + at, lengths[i]);
    }
    if (i + 1 < parts) {
      at += line_up(lengths[i]);
      if (at > length) throw nb::value_error("a message does not decode: its bytes are damaged");
    }
  }
  return decode_payload(kind, lease.tag, payload, PyBytes_AS_STRING(payload.ptr()),
                        static_cast<std::size_t>(PyBytes_GET_SIZE(payload.ptr())), buffers);
}

nb::object decode_payload(RecordKind kind, std::uint8_t tag, nb::handle payload, const void* bytes,
                          std::size_t size, nb::handle buffers) {
  if (kind == RecordKind::kNative) {
    const auto* text = static_cast<const char*>(bytes);
    if (tag == kBytes) {
      nb::object whole = stolen(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
      copy_bytes(PyBytes_AS_STRING(whole.ptr()), bytes, size);
      return whole;
    }
    if (tag == kStr)
      return stolen(PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(size), nullptr));
    return stolen(Decoder(bytes, size, buffers.ptr()).get());
  }
  nb::object whole = payload.is_valid()
                         ? nb::borrow(payload)
                         : stolen(PyBytes_FromStringAndSize(static_cast<const char*>(bytes),
                                                            static_cast<Py_ssize_t>(size)));
  if (codec_loads != nullptr) return nb::borrow(codec_loads)(whole, buffers);
  return hook(nullptr, "loads")(whole);
}

nb::object decode(const nb::object& segment, Segment& core, Incoming& m, bool copies) {
  if (m.lease != 0) {
    const DropMessage drop{core, m};  // its lease ends with the copy
    return decode_leased(Lease::unpack(m.lease), core.payload(m.blocks[0].offset),
                         m.blocks[0].length);
  }
  if (m.block_count == 0) [[likely]] {
    if (m.kind == RecordKind::kNative) return stolen(Decoder(m.payload, m.payload_size).get());
    return decode_payload(RecordKind::kPickle, 0, nb::handle(), m.payload, m.payload_size,
                          nb::make_tuple());
  }
  if (m.payload_in_block && m.kind == RecordKind::kNative && m.block_count == 1) {
    const DropMessage drop{core, m};
    return decode_payload(m.kind, static_cast<std::uint8_t>(m.payload[0]), nb::handle(),
                          core.payload(m.blocks[0].offset), m.blocks[0].length, nb::handle());
  }
  std::vector<nb::object> records;
  records.reserve(m.block_count);
  std::uint32_t wrapped = 0;
  try {
    for (; wrapped < m.block_count; ++wrapped)
      records.push_back(
          nb::cast(new PyRecord(segment, m.blocks[wrapped].offset, m.blocks[wrapped].length),
                   nb::rv_policy::take_ownership));
  } catch (...) {
    for (; wrapped < m.block_count; ++wrapped) (void)free_block(core, m.blocks[wrapped].offset);
    throw;
  }
  const std::size_t first = m.payload_in_block ? 1 : 0;
  nb::object buffers = stolen(PyTuple_New(static_cast<Py_ssize_t>(records.size() - first)));
  for (std::size_t i = first; i < records.size(); ++i) {
    if (copies) records[i] = stolen(PyByteArray_FromObject(records[i].ptr()));
    PyTuple_SET_ITEM(buffers.ptr(), static_cast<Py_ssize_t>(i - first), records[i].release().ptr());
  }
  return decode_payload(m.kind, 0, m.payload_in_block ? records[0] : nb::handle(), m.payload,
                        m.payload_size, buffers);
}

nb::object as_bytes(const nb::object& segment, Segment& core, Incoming& m) {
  const bool is_whole_pickle =
      m.lease != 0 && m.kind == RecordKind::kPickle && Lease::unpack(m.lease).buffers == 0;
  if (m.kind != RecordKind::kRaw && !is_whole_pickle) {
    // A pickle without buffers beside it is sent as it is; everything else is pickled again.
    if (m.kind == RecordKind::kPickle && m.block_count == 0)
      return stolen(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(m.payload),
                                              static_cast<Py_ssize_t>(m.payload_size)));
    const nb::object object = decode(segment, core, m);
    return hook(codec_dump_bytes, "dumps")(object);
  }
  if (!m.payload_in_block)
    return stolen(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(m.payload),
                                            static_cast<Py_ssize_t>(m.payload_size)));
  const DropMessage drop{core, m};
  BlockRef block = m.blocks[0];
  if (is_ticket(core, block.offset))
    check(read_ticket(core, block.offset, block.offset, block.length));
  nb::object whole =
      stolen(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(block.length)));
  copy_bytes(PyBytes_AS_STRING(whole.ptr()), core.payload(block.offset), block.length);
  return whole;
}

nb::object decode_any(const nb::object& segment, Segment& core, Incoming& m, bool copies) {
  if (m.kind == RecordKind::kRaw) {
    const nb::object whole = as_bytes(segment, core, m);
    return decode_payload(RecordKind::kPickle, 0, whole, nullptr, 0, nb::make_tuple());
  }
  return decode(segment, core, m, copies);
}

void bind_codec(nb::module_& m) {
  m.def(
      "set_object_codec",
      [](nb::object dumps, nb::object loads, nb::object dump_bytes, nb::object reducers) {
        if (!reducers.is_none()) {
          reducers = nb::tuple(reducers);
          for (const nb::handle table : reducers)
            if (!PyDict_Check(table.ptr()))
              throw nb::type_error("the tables of reducers must be dictionaries");
        }
        codec_dumps = dumps.release().ptr();
        codec_loads = loads.release().ptr();
        codec_dump_bytes = dump_bytes.release().ptr();
        codec_reducers = reducers.is_none() ? nullptr : reducers.release().ptr();
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg() = nb::none(),
      nb::sig("def set_object_codec(dumps: object, loads: object, dump_bytes: object, reducers: "
              "Iterable[dict[type, Any]] | None = None, /) -> None"),
      "Say how objects without an encoding of their own become messages, in the whole process.\n\n"
      "`dumps(obj)` returns a bytes-like payload and a list of buffers that go beside it (or None);"
      "\n`loads(payload, buffers)` makes the object again; `dump_bytes(obj)` returns a plain "
      "pickle.\n`reducers` are the tables of registered reducers, such as "
      "`copyreg.dispatch_table`, looked at\neach time. With them, numpy arrays of numbers whose "
      "type "
      "is in none of them get an encoding\nof their own; without, `dumps` gets all arrays.");
}

}  // namespace ipcbuf::binding
