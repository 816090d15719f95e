// What both files of the Python binding need. Only module.cpp and module_cuda.cpp see pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "fastpure/args.h"

namespace fastpure::binding {

namespace py = pybind11;
using Address = uintptr_t;

template <typename T>
const T* input(Address address) {
  return reinterpret_cast<const T*>(address);
}

inline void* output(Address address) { return reinterpret_cast<void*>(address); }

inline NoiseSource source(Address seed, Address ids, Address draws, Address step, uint32_t stream,
                          uint32_t domain) {
  return {input<int64_t>(seed), input<int64_t>(ids), input<int64_t>(draws), input<int64_t>(step), stream, domain};
}

#if defined(FASTPURE_WITH_CUDA)
py::object cuda_info();
void bind_cuda(py::module_& m);
#else
inline py::object cuda_info() { return py::none(); }
inline void bind_cuda(py::module_&) {}
#endif

}  // namespace fastpure::binding
