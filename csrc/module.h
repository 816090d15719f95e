// How an operation crosses from Python. A tensor is whatever has a method data_ptr: no framework is needed to build or
// load the module. Only module.cpp and module_cuda.cpp see pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda/launch.h"
#include "fastpure/args.h"

namespace fastpure::binding {

namespace py = pybind11;

// One field: a number as it is (a float where the field is a double), a tensor as its address, None as a null pointer.
inline uint64_t field_of(PyObject* value) {
  uint64_t bits = 0;
  if (value == Py_None) return bits;
  if (PyFloat_Check(value)) {
    const double number = PyFloat_AS_DOUBLE(value);
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
  }
  py::object number;
  if (!PyLong_Check(value)) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    number = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(value, data_ptr));
    if (!number) throw py::error_already_set();
    value = number.ptr();
  }
  bits = PyLong_AsUnsignedLongLongMask(value);
  if (bits == ~uint64_t{0} && PyErr_Occurred()) throw py::error_already_set();
  return bits;
}

// The argument block whose fields are `arguments`, those of the operation's schema, and then `rest`. Their number is
// checked; their order is that of fastpure/args.h.
template <typename Args>
Args block(const char* op, const py::tuple& arguments, const py::tuple& rest) {
  static_assert(std::is_trivially_copyable_v<Args> && std::is_standard_layout_v<Args> && alignof(Args) == 8);
  constexpr size_t kFields = sizeof(Args) / sizeof(uint64_t);
  if (arguments.size() + rest.size() != kFields) {
    throw py::type_error(std::string(op) + ": `arguments` and `rest` must be the " + std::to_string(kFields) +
                         " fields of the argument block, got " + std::to_string(arguments.size()) + " and " +
                         std::to_string(rest.size()));
  }
  uint64_t fields[kFields];
  uint64_t* field = fields;
  for (const py::tuple* part : {&arguments, &rest}) {
    const auto size = static_cast<Py_ssize_t>(part->size());
    for (Py_ssize_t i = 0; i < size; ++i) *field++ = field_of(PyTuple_GET_ITEM(part->ptr(), i));
  }
  Args args;
  std::memcpy(&args, fields, sizeof args);
  return args;
}

// Throws RuntimeError with CUDA's words.
void check_launch(const char* op, const cuda::Outcome& outcome, int device);

// How the CUDA half was built; None without it.
py::object cuda_info();

// The functions about devices; none without the CUDA half.
void bind_cuda(py::module_& m);

}  // namespace fastpure::binding
