#include "launch.h"

#include <algorithm>

#include "threads.h"

namespace fastpure::host {
namespace {

// Elements a thread should get at least: below that, handing the work over costs more than doing it.
constexpr int64_t kNoiseGrain = 16 * 1024;
constexpr int64_t kPlainGrain = 32 * 1024;
constexpr int64_t kNormGrain = 8 * 1024;

template <typename Args>
struct Call {
  void (*function)(const Args&, int64_t, int64_t);
  const Args* args;
};

template <typename Args>
void run(void (*function)(const Args&, int64_t, int64_t), const Args& args, int64_t tiles, int64_t tile_size,
         int64_t grain, int threads) {
  const Call<Args> call{function, &args};
  const int64_t tiles_each = std::max<int64_t>(1, grain / std::max<int64_t>(1, tile_size));
  parallel_for(
      tiles, tiles_each, threads,
      [](const void* context, int64_t begin, int64_t end) {
        const auto* c = static_cast<const Call<Args>*>(context);
        c->function(*c->args, begin, end);
      },
      &call);
}

bool valid(const BatchShape& shape) {
  return (shape.layout == kContiguous || shape.layout == kChannelsLast) && shape.batch >= 0 &&
         shape.channels >= 0 && shape.pixels >= 0;
}

int64_t sample_size(const BatchShape& shape) { return shape.channels * shape.pixels; }

bool row_clips(const RowVjpArgs& args) {
  const int64_t at = *args.step * kTableWidth + kClipColumn;
  return args.dtype == kFloat32 ? static_cast<const float*>(args.table)[at] != 0.0f
                                : static_cast<const double*>(args.table)[at] != 0.0;
}

bool is_activation(DType dtype) { return dtype == kFloat32 || dtype == kBFloat16; }

bool is_state(DType dtype) { return dtype == kFloat32 || dtype == kFloat64; }

// Whether an input has the dtype of the state; the host's loops widen nothing.
bool is_input(const void* input, DType dtype, DType state) { return input == nullptr || dtype == state; }

// Everything the loops divide by or index with; what the pointers hold is the caller's business.
Status check(const GroupNormShape& s, DType dtype) {
  if (!is_activation(dtype) || !is_activation(s.vectors)) return kBadDType;
  const bool sized = s.batch >= 0 && s.first >= 0 && s.second >= 0 && s.height >= 0 && s.width >= 0;
  if (!sized || s.groups < 1 || s.channels() % s.groups != 0) return kBadLayout;
  const bool even = s.height % 2 == 0 && s.width % 2 == 0;
  return s.resample == kKeep || s.resample == kUp || (s.resample == kDown && even) ? kOk : kBadKind;
}

template <typename Args>
Status run_group_norm(void (*function)(const Args&, int64_t, int64_t), const Args& args, int threads) {
  const GroupNormShape shape = shape_of(args);
  const Status status = check(shape, args.layout.dtype);
  if (status != kOk) return status;
  const int64_t unit_size = groups_per_unit(shape) * shape.channels() / shape.groups * shape.pixels();
  if (unit_size > 0) run(function, args, shape.batch * units_per_sample(shape), unit_size, kNormGrain, threads);
  return kOk;
}

// Samples are large: whoever gets one is busy for long.
template <typename Args>
Status run_network(void (*function)(const Args&, int64_t, int64_t), const Args& args, int threads) {
  const NetworkLayout& l = args.layout;
  if (!is_activation(l.dtype)) return kBadDType;
  if (l.batch < 0 || l.steps < 1 || l.tape_size < 0 || l.stats_size < 0 || l.cotangents_size < 0) return kBadLayout;
  run(function, args, l.batch, 1, 1, threads);
  return kOk;
}

}  // namespace

Status noise(const NoiseArgs& args, int threads, const Kernels& kernels) {
  if (!is_state(args.dtype)) return kBadDType;
  if (!valid(args.shape)) return kBadLayout;
  if (args.kind != kNormal && args.kind != kUniform) return kBadKind;
  if (*args.source.step < 0 || *args.source.step > 0xFFFF) return kBadStep;
  const int64_t tile_size = std::min(kTile, sample_size(args.shape));
  run(args.dtype == kFloat32 ? kernels.noise_f32 : kernels.noise_f64, args,
      args.shape.batch * tiles_per_sample(args.shape), tile_size, kNoiseGrain, threads);
  return kOk;
}

Status affine_row(const RowArgs& args, int threads, const Kernels& kernels) {
  if (!is_state(args.dtype) || !is_input(args.noise_pred, args.noise_pred_dtype, args.dtype) ||
      !is_input(args.guidance, args.guidance_dtype, args.dtype)) {
    return kBadDType;
  }
  if (!valid(args.shape)) return kBadLayout;
  if (*args.step < 0 || *args.step >= args.rows) return kBadStep;
  const int64_t tile_size = std::min(kTile, sample_size(args.shape));
  run(args.dtype == kFloat32 ? kernels.row_f32 : kernels.row_f64, args,
      args.shape.batch * tiles_per_sample(args.shape), tile_size, args.seed == nullptr ? kPlainGrain : kNoiseGrain,
      threads);
  return kOk;
}

Status affine_row_vjp(const RowVjpArgs& args, int threads, const Kernels& kernels) {
  if (!is_state(args.dtype) || !is_input(args.noise_pred, args.noise_pred_dtype, args.dtype)) return kBadDType;
  if (*args.step < 0 || *args.step >= args.rows) return kBadStep;
  if (args.x == nullptr && row_clips(args)) return kNoState;
  run(args.dtype == kFloat32 ? kernels.vjp_f32 : kernels.vjp_f64, args, (args.elements + kTile - 1) / kTile, kTile,
      kPlainGrain, threads);
  return kOk;
}

Status group_norm(const GroupNormArgs& args, int threads, const Kernels& kernels) {
  return run_group_norm(args.layout.dtype == kFloat32 ? kernels.group_norm_f32 : kernels.group_norm_bf16, args, threads);
}

Status group_norm_vjp(const GroupNormVjpArgs& args, int threads, const Kernels& kernels) {
  return run_group_norm(args.layout.dtype == kFloat32 ? kernels.group_norm_vjp_f32 : kernels.group_norm_vjp_bf16, args,
                        threads);
}

Status resample(const ResampleArgs& args, int threads, const Kernels& kernels) {
  if (!is_activation(args.dtype)) return kBadDType;
  if (args.batch < 0 || args.channels < 0 || args.height < 0 || args.width < 0) return kBadLayout;
  const int64_t row_size = args.channels * args.width;
  if (row_size > 0) {
    run(args.dtype == kFloat32 ? kernels.resample_f32 : kernels.resample_bf16, args, args.batch * args.height,
        5 * row_size, kPlainGrain, threads);
  }
  return kOk;
}

Status residual_add(const ResidualArgs& args, int threads, const Kernels& kernels) {
  if (!is_activation(args.dtype) || !is_activation(args.vectors)) return kBadDType;
  if (args.batch < 0 || args.channels < 0 || args.pixels < 0) return kBadLayout;
  if (args.channels > 0) {
    run(args.dtype == kFloat32 ? kernels.residual_f32 : kernels.residual_bf16, args,
        args.batch * rows_per_sample(args), kRowPixels * args.channels, kPlainGrain, threads);
  }
  return kOk;
}

Status network(const NetworkArgs& args, int threads, const Kernels& kernels) {
  return run_network(args.layout.dtype == kFloat32 ? kernels.network_f32 : kernels.network_bf16, args, threads);
}

Status network_vjp(const NetworkVjpArgs& args, int threads, const Kernels& kernels) {
  return run_network(args.layout.dtype == kFloat32 ? kernels.network_vjp_f32 : kernels.network_vjp_bf16, args, threads);
}

}  // namespace fastpure::host
