// The Python binding: one function per operation, for host memory and CUDA devices alike. Callers
// (fastpure/kernels/*/launch.py, network.py) have checked shapes, dtypes and layouts.
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "fastpure/args.h"
#include "fastpure/philox.h"
#include "host/kernels.h"
#include "host/launch.h"
#include "host/threads.h"
#include "module.h"

#ifndef FASTPURE_BUILD_FLAGS
#define FASTPURE_BUILD_FLAGS "unknown"
#endif

using namespace fastpure;
using namespace fastpure::binding;

namespace {

// The step of a call in host memory, and how many there are; for the message where it is refused.
struct Steps {
  int64_t step, count;
};

Steps steps_of(const NoiseArgs& args) { return {*args.source.step, 1 << 16}; }
Steps steps_of(const RowArgs& args) { return {*args.step, args.rows}; }
Steps steps_of(const RowVjpArgs& args) { return {*args.step, args.rows}; }
Steps steps_of(const host::GroupNormArgs&) { return {}; }
Steps steps_of(const host::GroupNormVjpArgs&) { return {}; }
Steps steps_of(const host::ResampleArgs&) { return {}; }
Steps steps_of(const host::ResidualArgs&) { return {}; }
Steps steps_of(const host::NetworkArgs&) { return {}; }
Steps steps_of(const host::NetworkVjpArgs&) { return {}; }

// Throws ValueError for what the caller can mend; the Python checks keep the rest from happening.
template <typename Args>
void check(const char* op, Status status, const Args& args) {
  switch (status) {
    case kOk:
      return;
    case kBadStep: {
      const Steps steps = steps_of(args);
      throw py::value_error("`step` must be in [0, " + std::to_string(steps.count - 1) + "], got " +
                            std::to_string(steps.step));
    }
    case kNoState:
      throw py::value_error("`x` must be the state of the row, because the row clips, got None");
    default:
      throw std::runtime_error(std::string(op) + ": unknown dtype, layout or kind, code " + std::to_string(status));
  }
}

const host::Kernels& kernels_called(const char* isa) {
  const host::Kernels* found = host::find_kernels(isa);
  if (found == nullptr) {
    throw std::invalid_argument("this machine cannot run instruction set '" + std::string(isa) + "'");
  }
  return *found;
}

template <typename Args>
using OnHost = Status (*)(const Args&, int threads, const host::Kernels&);
template <typename Args>
using OnCuda = cuda::Outcome (*)(const Args&, const cuda::Target&);

// Binds `name`(device, stream, arguments, rest, isa=None). Device -1 is host memory: `stream` is then the number of
// threads, and `isa` may name an instruction set. Otherwise `stream` is the cudaStream_t to launch on.
template <typename Args>
void bind(py::module_& m, const char* name, OnHost<Args> on_host, OnCuda<Args> on_cuda) {
  const auto call = [=](int device, uintptr_t stream, const py::tuple& arguments, const py::tuple& rest,
                        const char* isa) {
    const Args args = block<Args>(name, arguments, rest);
    if (device >= 0) {
      const auto launch = [&] {
        py::gil_scoped_release unlocked;
        return on_cuda(args, {device, reinterpret_cast<void*>(stream)});
      };
      return check_launch(name, launch(), device);
    }
    const host::Kernels& kernels = kernels_called(isa);
    const auto run = [&] {
      py::gil_scoped_release unlocked;
      return on_host(args, static_cast<int>(stream), kernels);
    };
    check(name, run(), args);
  };
  m.def(name, call, py::arg("device"), py::arg("stream"), py::arg("arguments"), py::arg("rest"),
        py::arg("isa") = py::none());
}

// For operations that CUDA devices do by other means.
template <typename Args>
cuda::Outcome host_only(const Args&, const cuda::Target&) {
  return {kNoCuda, 0};
}

py::tuple philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words words = philox4x32_10(c0, c1, c2, c3, k0, k1);
  return py::make_tuple(words.w0, words.w1, words.w2, words.w3);
}

py::dict build_info() {
  py::list sets;
  const host::Kernels* list[host::kInstructionSets];
  const int count = host::available_kernels(list);
  for (int i = 0; i < count; ++i) sets.append(list[i]->name);
  py::dict info;
  info["abi"] = FASTPURE_ABI;
  info["compiler"] = __VERSION__;
  info["flags"] = FASTPURE_BUILD_FLAGS;
  info["instruction_sets"] = sets;  // those this machine can run, best first
  info["dtypes"] = py::dict(
      py::arg("float32") = static_cast<int>(kFloat32), py::arg("float64") = static_cast<int>(kFloat64),
      py::arg("bfloat16") = static_cast<int>(kBFloat16), py::arg("float16") = static_cast<int>(kFloat16));
  info["layouts"] = py::dict(py::arg("contiguous_format") = static_cast<int>(kContiguous),
                             py::arg("channels_last") = static_cast<int>(kChannelsLast));
  info["noise_kinds"] =
      py::dict(py::arg("normal") = static_cast<int>(kNormal), py::arg("uniform") = static_cast<int>(kUniform));
  const char* threads = host::threads_from();
  info["threads_from"] = threads == nullptr ? py::object(py::none()) : py::object(py::str(threads));
  info["network_step"] = sizeof(host::NetworkStep);  // bytes of what fastpure/kernels/network.py writes down
  info["cuda"] = cuda_info();  // None without the CUDA half
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of fastpure; see fastpure.kernels for the functions to call.";
  m.def("build_info", &build_info, "How this module was built and what it can use on this machine.");
  m.def("philox_words", &philox_words, py::kw_only(), py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"),
        py::arg("k0"), py::arg("k1"), "Philox4x32-10 of one counter and key, for known-answer tests.");
  m.def(
      "fingerprint",
      [](uintptr_t spans, int64_t count) {
        return host::fingerprint(reinterpret_cast<const host::Span*>(spans), count);
      },
      py::arg("spans"), py::arg("count"), py::call_guard<py::gil_scoped_release>(),
      "A number that changes with the memory that `count` pairs (address, bytes) at address `spans` name.");
  bind<NoiseArgs>(m, "noise", host::noise, cuda::noise);
  bind<RowArgs>(m, "affine_row", host::affine_row, cuda::affine_row);
  bind<RowVjpArgs>(m, "affine_row_vjp", host::affine_row_vjp, cuda::affine_row_vjp);
  bind<host::GroupNormArgs>(m, "group_norm", host::group_norm, host_only);
  bind<host::GroupNormVjpArgs>(m, "group_norm_vjp", host::group_norm_vjp, host_only);
  bind<host::ResampleArgs>(m, "resample", host::resample, host_only);
  bind<host::ResidualArgs>(m, "residual_add", host::residual_add, host_only);
  bind<host::NetworkArgs>(m, "network", host::network, host_only);
  bind<host::NetworkVjpArgs>(m, "network_vjp", host::network_vjp, host_only);
  bind_cuda(m);
}
