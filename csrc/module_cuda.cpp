// CUDA devices in the Python binding: what there is, why there is nothing, and the loading of kernels. The operations
// are bound in module.cpp, for both memories at once.
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "fastpure/args.h"
#include "module.h"

#if !defined(FASTPURE_WITH_CUDA)
// Without the CUDA half its entry points say so.
namespace fastpure::cuda {
Outcome noise(const NoiseArgs&, const Target&) { return {kNoCuda, 0}; }
Outcome affine_row(const RowArgs&, const Target&) { return {kNoCuda, 0}; }
Outcome affine_row_vjp(const RowVjpArgs&, const Target&) { return {kNoCuda, 0}; }
std::string error_text(int) { return {}; }
}  // namespace fastpure::cuda
#endif

namespace fastpure::binding {

void check_launch(const char* op, const cuda::Outcome& outcome, int device) {
  const std::string where = std::string(op) + " on cuda:" + std::to_string(device) + ": ";
  if (outcome.status == kNoCuda) {
    throw std::runtime_error(where + "no kernel for CUDA devices is built in (installing with FASTPURE_CUDA=1 insists)");
  }
  if (outcome.status == kTooLarge) throw std::runtime_error(where + "more than 2^34 elements in one call");
  if (outcome.status != kOk) {
    throw std::runtime_error(where + "unknown dtype, layout or noise kind, code " + std::to_string(outcome.status));
  }
  if (outcome.error != 0) throw std::runtime_error(where + cuda::error_text(outcome.error));
}

#if defined(FASTPURE_WITH_CUDA)
py::object cuda_info() {
  py::dict info;
  info["compiler"] = cuda::compiler_version();
  info["flags"] = FASTPURE_CUDA_FLAGS;
  info["architectures"] = FASTPURE_CUDA_ARCHS;
  return info;
}

void bind_cuda(py::module_& m) {
  m.def("device_count", [] { return cuda::capabilities().size(); }, "CUDA devices; 0 without a driver.");
  m.def("device_capabilities", &cuda::capabilities, "Compute capability of each device, as 10 major + minor.");
  m.def("device_trouble", &cuda::device_trouble, "What CUDA says when it is asked for its devices.");
  m.def("cuda_preload", [](int device) { check_launch("preload", cuda::preload(device), device); }, py::arg("device"),
        "Load every kernel on a device, so that none is loaded later.");
}
#else
py::object cuda_info() { return py::none(); }
void bind_cuda(py::module_&) {}
#endif

}  // namespace fastpure::binding
