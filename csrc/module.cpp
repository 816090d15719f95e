// The Python binding; module_cuda.cpp has the functions for CUDA devices. Tensors cross as addresses: no framework is
// needed to build or load this module. Callers (fastpure/kernels/*/impl_ext.py, impl_cuda.py) have checked shapes,
// dtypes and layouts.
#include <cstdint>
#include <stdexcept>
#include <string>

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

// Throws ValueError for what the caller can mend; the Python checks keep the rest from happening.
void check(Status status, int64_t step, int64_t rows) {
  switch (status) {
    case kOk:
      return;
    case kBadStep:
      throw py::value_error("`step` must be in [0, " + std::to_string(rows - 1) + "], got " +
                            std::to_string(step));
    case kNoState:
      throw py::value_error("`x` must be the state of the row, because the row clips, got None");
    default:
      throw std::runtime_error("unknown dtype, layout or kind, code " + std::to_string(status));
  }
}

const host::Kernels& kernels_called(const char* isa) {
  const host::Kernels* found = host::find_kernels(isa);
  if (found == nullptr) {
    throw std::invalid_argument("this machine cannot run instruction set '" + std::string(isa) + "'");
  }
  return *found;
}

void noise(int kind, Address seed, Address sample_ids, Address draws, Address step, uint32_t stream,
           uint32_t domain, Address out, int64_t batch, int64_t channels, int64_t pixels, int layout, int dtype,
           int threads, const char* isa) {
  const NoiseArgs args{source(seed, sample_ids, draws, step, stream, domain),
                       {batch, channels, pixels, static_cast<Layout>(layout)},
                       static_cast<NoiseKind>(kind),
                       output(out)};
  const host::Kernels& kernels = kernels_called(isa);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = host::noise(args, static_cast<DType>(dtype), threads, kernels);
  }
  check(status, *args.source.step, 1 << 16);
}

void affine_row(Address x, Address noise_pred, Address guidance, Address register_, Address given, Address seed,
                Address sample_ids, Address draws, Address table, int64_t rows, Address step, uint32_t stream,
                uint32_t domain, Address x_next, Address register_next, int64_t batch, int64_t channels,
                int64_t pixels, int layout, int dtype, int threads, const char* isa) {
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
  const host::Kernels& kernels = kernels_called(isa);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = host::affine_row(args, static_cast<DType>(dtype), threads, kernels);
  }
  check(status, *args.step, rows);
}

void affine_row_vjp(Address v, Address v_register, Address x, Address noise_pred, Address table, int64_t rows,
                    Address step, Address v_x, Address v_noise_pred, Address v_guidance, Address v_register_out,
                    int64_t elements, int dtype, int threads, const char* isa) {
  const RowVjpArgs args{input<void>(v),     input<void>(v_register), input<void>(x),        input<void>(noise_pred),
                        input<void>(table), rows,                    input<int64_t>(step),  elements,
                        output(v_x),        output(v_noise_pred),    output(v_guidance),    output(v_register_out)};
  const host::Kernels& kernels = kernels_called(isa);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = host::affine_row_vjp(args, static_cast<DType>(dtype), threads, kernels);
  }
  check(status, *args.step, rows);
}

host::GroupNormShape group_norm_shape(int64_t batch, int64_t first, int64_t second, int64_t height, int64_t width,
                                      int64_t groups, int resample, bool activate, int vectors) {
  return {batch,  first, second, height, width, groups, static_cast<host::Resample>(resample), activate,
          static_cast<DType>(vectors)};
}

void group_norm(Address x, Address skip, Address row, int64_t row_stride, Address weight, int64_t weight_stride,
                Address bias, int64_t bias_stride, double eps, Address y, Address stats, int64_t batch, int64_t first,
                int64_t second, int64_t height, int64_t width, int64_t groups, int resample, bool activate,
                int vectors, int dtype, int threads, const char* isa) {
  const host::GroupNormArgs args{
      group_norm_shape(batch, first, second, height, width, groups, resample, activate, vectors),
      input<void>(x),
      input<void>(skip),
      {input<void>(row), row_stride},
      {input<void>(weight), weight_stride},
      {input<void>(bias), bias_stride},
      eps,
      output(y),
      static_cast<float*>(output(stats))};
  const host::Kernels& kernels = kernels_called(isa);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = host::group_norm(args, static_cast<DType>(dtype), threads, kernels);
  }
  check(status, 0, 0);
}

void group_norm_vjp(Address v, Address x, Address skip, Address row, int64_t row_stride, Address weight,
                    int64_t weight_stride, Address bias, int64_t bias_stride, Address stats, Address add, Address v_x,
                    Address v_skip, int64_t batch, int64_t first, int64_t second, int64_t height, int64_t width,
                    int64_t groups, int resample, bool activate, int vectors, int dtype, int threads,
                    const char* isa) {
  const host::GroupNormVjpArgs args{
      group_norm_shape(batch, first, second, height, width, groups, resample, activate, vectors),
      input<void>(v),
      input<void>(x),
      input<void>(skip),
      {input<void>(row), row_stride},
      {input<void>(weight), weight_stride},
      {input<void>(bias), bias_stride},
      input<float>(stats),
      input<void>(add),
      output(v_x),
      output(v_skip)};
  const host::Kernels& kernels = kernels_called(isa);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = host::group_norm_vjp(args, static_cast<DType>(dtype), threads, kernels);
  }
  check(status, 0, 0);
}

py::tuple philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words words = philox4x32_10(c0, c1, c2, c3, k0, k1);
  return py::make_tuple(words.w0, words.w1, words.w2, words.w3);
}

py::dict build_info() {
  py::list sets;
  const host::Kernels* list[3];
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
  info["layouts"] = py::dict(py::arg("contiguous") = static_cast<int>(kContiguous),
                             py::arg("channels_last") = static_cast<int>(kChannelsLast));
  info["noise_kinds"] =
      py::dict(py::arg("normal") = static_cast<int>(kNormal), py::arg("uniform") = static_cast<int>(kUniform));
  const char* threads = host::threads_from();
  info["threads_from"] = threads == nullptr ? py::object(py::none()) : py::object(py::str(threads));
  info["cuda"] = cuda_info();  // None without the CUDA half
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of fastpure; see fastpure.kernels for the functions to call.";
  m.def("build_info", &build_info, "How this module was built and what it can use on this machine.");
  m.def("philox_words", &philox_words, py::kw_only(), py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"),
        py::arg("k0"), py::arg("k1"), "Philox4x32-10 of one counter and key, for known-answer tests.");
  // Named for the reader and for error messages; the one call site of each passes them by position, because matching
  // twenty names takes longer than a row of a small batch.
  m.def("noise", &noise, py::arg("kind"), py::arg("seed"), py::arg("sample_ids"), py::arg("draws"),
        py::arg("step"), py::arg("stream"), py::arg("domain"), py::arg("out"), py::arg("batch"),
        py::arg("channels"), py::arg("pixels"), py::arg("layout"), py::arg("dtype"), py::arg("threads"),
        py::arg("isa") = py::none());
  m.def("affine_row", &affine_row, py::arg("x"), py::arg("noise_pred"), py::arg("guidance"), py::arg("register_"),
        py::arg("noise"), py::arg("seed"), py::arg("sample_ids"), py::arg("draws"), py::arg("table"),
        py::arg("rows"), py::arg("step"), py::arg("stream"), py::arg("domain"), py::arg("x_next"),
        py::arg("register_next"), py::arg("batch"), py::arg("channels"), py::arg("pixels"), py::arg("layout"),
        py::arg("dtype"), py::arg("threads"), py::arg("isa") = py::none());
  m.def("affine_row_vjp", &affine_row_vjp, py::arg("v"), py::arg("v_register"), py::arg("x"),
        py::arg("noise_pred"), py::arg("table"), py::arg("rows"), py::arg("step"), py::arg("v_x"),
        py::arg("v_noise_pred"), py::arg("v_guidance"), py::arg("v_register_out"), py::arg("elements"),
        py::arg("dtype"), py::arg("threads"), py::arg("isa") = py::none());
  m.def("group_norm", &group_norm, py::arg("x"), py::arg("skip"), py::arg("row"), py::arg("row_stride"),
        py::arg("weight"), py::arg("weight_stride"), py::arg("bias"), py::arg("bias_stride"), py::arg("eps"),
        py::arg("y"), py::arg("stats"), py::arg("batch"), py::arg("first"), py::arg("second"), py::arg("height"),
        py::arg("width"), py::arg("groups"), py::arg("resample"), py::arg("activate"), py::arg("vectors"),
        py::arg("dtype"), py::arg("threads"), py::arg("isa") = py::none());
  m.def("group_norm_vjp", &group_norm_vjp, py::arg("v"), py::arg("x"), py::arg("skip"), py::arg("row"),
        py::arg("row_stride"), py::arg("weight"), py::arg("weight_stride"), py::arg("bias"), py::arg("bias_stride"),
        py::arg("stats"), py::arg("add"), py::arg("v_x"), py::arg("v_skip"), py::arg("batch"), py::arg("first"),
        py::arg("second"), py::arg("height"), py::arg("width"), py::arg("groups"), py::arg("resample"),
        py::arg("activate"), py::arg("vectors"), py::arg("dtype"), py::arg("threads"), py::arg("isa") = py::none());
  bind_cuda(m);
}
