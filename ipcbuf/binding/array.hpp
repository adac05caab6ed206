// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// array.hpp - numpy arrays in a message, without pickle: a head, the shape, the bytes.
#pragma once

#include "binding.hpp"

namespace ipcbuf::binding {

/// In a message behind its tag; behind it the shape, 64 bits for each dimension.
struct ArrayHead {
  std::uint8_t type;   // see array.cpp
  std::uint8_t order;  // 0 = C, 1 = Fortran
  std::uint8_t dimensions;
};
static_assert(sizeof(ArrayHead) == 3);

/// True of `numpy.ndarray` itself, once `learn_arrays` has run behind the first question. Runs no
/// Python code, as `read_array`.
[[nodiscard]] bool is_array(PyTypeObject* type) noexcept;
void learn_arrays() noexcept;
/// Describes an array; false, without an exception: pickle it. Else the buffer is to be released.
[[nodiscard]] bool read_array(PyObject* array, ArrayHead& head, Py_buffer& buffer) noexcept;
/// Makes an array over `memory`, or, if that is nullptr, one with a copy of the bytes. nullptr: the
/// message is damaged, or with an exception.
[[nodiscard]] PyObject* make_array(const ArrayHead& head, const char* shape, PyObject* memory,
                                   const char* bytes, std::size_t size) noexcept;

}  // namespace ipcbuf::binding
