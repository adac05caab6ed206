// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// array.cpp - numpy arrays without pickle, and without numpy at build time.
//
// Overview
//   An array of exactly `numpy.ndarray`, of one of numpy's own number types, and contiguous, is a
//   head (type, order, shape) and its bytes. Few bytes follow the head, many go beside it into a
//   block, whose record is the memory of the receiver's array. Any other array is pickled.
//
// numpy is known here once a program has sent or received an array, never imported for a look.
#include "array.hpp"

#include <cstring>

namespace ipcbuf::binding {

namespace {

constexpr int kMaxDimensions = 64;
// By the letters of their types, in the order of their numbers in a message.
constexpr char kLetters[] = "?bBhHiIlLqQefdgFDG";
constexpr int kTypes = sizeof kLetters - 1;

/// What is needed of numpy. Kept for the life of the process, as the codec's functions are.
struct Numpy {
  PyObject* array = nullptr;  // numpy.ndarray
  PyObject* empty = nullptr;
  PyObject* given[kTypes];  // the one object of each type, and what it is after unpickling
  PyObject* made[kTypes];
};
Numpy numpy;
bool wanted = false;
PyObject* word_dtype = nullptr;
PyObject* word_order[2] = {nullptr, nullptr};

/// Fills `numpy`; false with an exception.
bool load_numpy() noexcept {
  if (numpy.array != nullptr) return true;
  try {
    const nb::module_ module = nb::module_::import_("numpy");
    const nb::object array = module.attr("ndarray");
    nb::object given[kTypes];
    nb::object made[kTypes];
    for (int i = 0; i < kTypes; ++i) {
      given[i] = module.attr("dtype")(nb::str(&kLetters[i], 1));
      made[i] = module.attr("dtype")(given[i].attr("str"));
    }
    nb::object empty = module.attr("empty");
    word_dtype = PyUnicode_InternFromString("dtype");
    word_order[0] = PyUnicode_InternFromString("C");
    word_order[1] = PyUnicode_InternFromString("F");
    if (word_dtype == nullptr || word_order[0] == nullptr || word_order[1] == nullptr) return false;
    for (int i = 0; i < kTypes; ++i) {
      numpy.given[i] = given[i].release().ptr();
      numpy.made[i] = made[i].release().ptr();
    }
    numpy.empty = empty.release().ptr();
    numpy.array = nb::object(array).release().ptr();
    return true;
  } catch (nb::python_error& error) {
    error.restore();
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "numpy cannot be used");
  }
  return false;
}

/// The number of the array's type in a message; -1: it is none of those.
int type_number(PyObject* array) noexcept {
  PyObject* const dtype = PyObject_GetAttr(array, word_dtype);
  if (dtype == nullptr) {
    PyErr_Clear();
    return -1;
  }
  int number = -1;
  for (int i = 0; i < kTypes && number < 0; ++i)
    if (numpy.given[i] == dtype) number = i;
  Py_DECREF(dtype);
  return number;
}

}  // namespace

bool is_array(PyTypeObject* type) noexcept {
  if (numpy.array != nullptr) return reinterpret_cast<PyObject*>(type) == numpy.array;
  if (std::strcmp(type->tp_name, "numpy.ndarray") == 0) wanted = true;
  return false;
}

void learn_arrays() noexcept {
  if (!wanted) return;
  wanted = false;
  // Whoever has an array has imported numpy, so this imports nothing.
  if (!load_numpy()) PyErr_Clear();
}

bool read_array(PyObject* array, ArrayHead& head, Py_buffer& buffer) noexcept {
  const int type = type_number(array);
  if (type < 0) return false;
  if (PyObject_GetBuffer(array, &buffer, PyBUF_ANY_CONTIGUOUS) != 0) {
    PyErr_Clear();
    return false;
  }
  if (buffer.ndim > kMaxDimensions) {
    PyBuffer_Release(&buffer);
    return false;
  }
  head.type = static_cast<std::uint8_t>(type);
  head.order = PyBuffer_IsContiguous(&buffer, 'C') != 0 ? 0 : 1;
  head.dimensions = static_cast<std::uint8_t>(buffer.ndim);
  return true;
}

PyObject* make_array(const ArrayHead& head, const char* shape, PyObject* memory, const char* bytes,
                     std::size_t size) noexcept {
  if (!load_numpy()) return nullptr;
  if (head.type >= kTypes || head.order > 1 || head.dimensions > kMaxDimensions) return nullptr;
  PyObject* const lengths = PyTuple_New(head.dimensions);
  if (lengths == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < head.dimensions; ++i) {
    std::int64_t n = 0;
    std::memcpy(&n, shape + static_cast<std::size_t>(i) * sizeof n, sizeof n);
    PyObject* const length = PyLong_FromLongLong(n);
    if (length == nullptr) return Py_DECREF(lengths), nullptr;
    PyTuple_SET_ITEM(lengths, i, length);
  }
  PyObject* const order = word_order[head.order];
  PyObject* made = nullptr;
  if (memory != nullptr) {
    PyObject* const zero = PyLong_FromLong(0);  // the offset
    if (zero != nullptr) {
      PyObject* call[] = {nullptr, lengths, numpy.made[head.type], memory, zero, Py_None, order};
      made =
          PyObject_Vectorcall(numpy.array, call + 1, 6 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
      Py_DECREF(zero);
    }
    Py_DECREF(lengths);
    return made;
  }
  PyObject* call[] = {nullptr, lengths, numpy.made[head.type], order};
  made = PyObject_Vectorcall(numpy.empty, call + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  Py_DECREF(lengths);
  if (made == nullptr) return nullptr;
  Py_buffer buffer{};
  if (PyObject_GetBuffer(made, &buffer, PyBUF_ANY_CONTIGUOUS | PyBUF_WRITABLE) != 0)
    return Py_DECREF(made), nullptr;
  const bool fits = static_cast<std::size_t>(buffer.len) == size;
  if (fits && size != 0) std::memcpy(buffer.buf, bytes, size);
  PyBuffer_Release(&buffer);
  if (!fits) return Py_DECREF(made), nullptr;
  return made;
}

}  // namespace ipcbuf::binding
