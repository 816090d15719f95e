// The functions of the binding for CUDA devices: those of module.cpp with dtype codes of the two inputs that may be
// narrower, then device and stream. Nothing without the CUDA half.
#if defined(FASTPURE_WITH_CUDA)
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "fastpure/args.h"
#include "module.h"

namespace fastpure::binding {

namespace {

// Throws RuntimeError with CUDA's words. Steps are not looked at: they are in the memory of the device.
void check_launch(const char* op, const cuda::Outcome& outcome, int device) {
  const std::string where = std::string(op) + " on cuda:" + std::to_string(device) + ": ";
  if (outcome.status == kTooLarge) throw std::runtime_error(where + "more than 2^34 elements in one call");
  if (outcome.status != kOk) {
    throw std::runtime_error(where + "unknown dtype, layout or noise kind, code " + std::to_string(outcome.status));
  }
  if (outcome.error != 0) throw std::runtime_error(where + cuda::error_text(outcome.error));
}

cuda::Target target(int device, Address stream) { return {device, output(stream)}; }

void cuda_noise(int kind, Address seed, Address sample_ids, Address draws, Address step, uint32_t stream,
                uint32_t domain, Address out, int64_t batch, int64_t channels, int64_t pixels, int layout, int dtype,
                int device, Address cuda_stream) {
  const NoiseArgs args{source(seed, sample_ids, draws, step, stream, domain),
                       {batch, channels, pixels, static_cast<Layout>(layout)},
                       static_cast<NoiseKind>(kind),
                       output(out)};
  cuda::Outcome outcome;
  {
    py::gil_scoped_release unlocked;
    outcome = cuda::noise(args, static_cast<DType>(dtype), target(device, cuda_stream));
  }
  check_launch("noise", outcome, device);
}

void cuda_affine_row(Address x, Address noise_pred, Address guidance, Address register_, Address given, Address seed,
                     Address sample_ids, Address draws, Address table, int64_t rows, Address step, uint32_t stream,
                     uint32_t domain, Address x_next, Address register_next, int64_t batch, int64_t channels,
                     int64_t pixels, int layout, int dtype, int noise_pred_dtype, int guidance_dtype, int device,
                     Address cuda_stream) {
  const RowArgs args{input<void>(x),
                     input<void>(noise_pred),
                     input<void>(guidance),
                     input<void>(register_),
                     input<void>(given),
                     source(seed, sample_ids, draws, step, stream, domain),
                     input<void>(table),
                     rows,
                     input<int64_t>(step),
                     {batch, channels, pixels, static_cast<Layout>(layout)},
                     output(x_next),
                     output(register_next)};
  const cuda::InputTypes types{static_cast<DType>(noise_pred_dtype), static_cast<DType>(guidance_dtype)};
  cuda::Outcome outcome;
  {
    py::gil_scoped_release unlocked;
    outcome = cuda::affine_row(args, static_cast<DType>(dtype), types, target(device, cuda_stream));
  }
  check_launch("affine_row", outcome, device);
}

void cuda_affine_row_vjp(Address v, Address v_register, Address x, Address noise_pred, Address table, int64_t rows,
                         Address step, Address v_x, Address v_noise_pred, Address v_guidance, Address v_register_out,
                         int64_t elements, int dtype, int noise_pred_dtype, int device, Address cuda_stream) {
  const RowVjpArgs args{input<void>(v),     input<void>(v_register), input<void>(x),        input<void>(noise_pred),
                        input<void>(table), rows,                    input<int64_t>(step),  elements,
                        output(v_x),        output(v_noise_pred),    output(v_guidance),    output(v_register_out)};
  cuda::Outcome outcome;
  {
    py::gil_scoped_release unlocked;
    outcome = cuda::affine_row_vjp(args, static_cast<DType>(dtype), static_cast<DType>(noise_pred_dtype),
                                   target(device, cuda_stream));
  }
  check_launch("affine_row_vjp", outcome, device);
}

void cuda_preload(int device) { check_launch("preload", cuda::preload(device), device); }

}  // namespace

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
  m.def("cuda_preload", &cuda_preload, py::arg("device"), "Load every kernel on a device, so that none is loaded later.");
  m.def("cuda_noise", &cuda_noise, py::arg("kind"), py::arg("seed"), py::arg("sample_ids"), py::arg("draws"),
        py::arg("step"), py::arg("stream"), py::arg("domain"), py::arg("out"), py::arg("batch"),
        py::arg("channels"), py::arg("pixels"), py::arg("layout"), py::arg("dtype"), py::arg("device"),
        py::arg("cuda_stream"));
  m.def("cuda_affine_row", &cuda_affine_row, py::arg("x"), py::arg("noise_pred"), py::arg("guidance"),
        py::arg("register_"), py::arg("noise"), py::arg("seed"), py::arg("sample_ids"), py::arg("draws"),
        py::arg("table"), py::arg("rows"), py::arg("step"), py::arg("stream"), py::arg("domain"), py::arg("x_next"),
        py::arg("register_next"), py::arg("batch"), py::arg("channels"), py::arg("pixels"), py::arg("layout"),
        py::arg("dtype"), py::arg("noise_pred_dtype"), py::arg("guidance_dtype"), py::arg("device"),
        py::arg("cuda_stream"));
  m.def("cuda_affine_row_vjp", &cuda_affine_row_vjp, py::arg("v"), py::arg("v_register"), py::arg("x"),
        py::arg("noise_pred"), py::arg("table"), py::arg("rows"), py::arg("step"), py::arg("v_x"),
        py::arg("v_noise_pred"), py::arg("v_guidance"), py::arg("v_register_out"), py::arg("elements"),
        py::arg("dtype"), py::arg("noise_pred_dtype"), py::arg("device"), py::arg("cuda_stream"));
}

}  // namespace fastpure::binding
#endif
