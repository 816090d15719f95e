// GroupNorm + SiLU (+ 2x resampling) and its transpose: argument blocks, and how the work is cut up.
//
// Activations are dense channels_last: [B, H, W, C] in memory. The work is cut into units, a few whole groups of one
// sample each, which depend on nothing but themselves. The cut depends on the shape alone and every sum runs over
// the pixels in order, channel by channel, so results have the same bits on any number of threads and in any batch.
#pragma once

#include <cstdint>

#include "fastpure/args.h"

namespace fastpure::host {

enum Resample : int64_t { kKeep = 0, kUp = 1, kDown = 2 };

// How the tensors of a call lie in memory.
struct GroupNormLayout {
  int64_t batch;
  int64_t first, second;  // channels of x and of skip (0 without one)
  int64_t height, width;  // of the input
  int64_t row_stride;                  // from one sample's numbers to the next: 0 or `first`
  int64_t weight_stride, bias_stride;  // 0 or all channels
  DType vectors;  // dtype of row, weight and bias: float32 or bfloat16
  DType dtype;    // of the activations: float32 or bfloat16
};

// group_norm_silu; a block that crosses from Python, as those of fastpure/args.h.
struct GroupNormArgs {
  const void *x, *skip, *row, *weight, *bias;
  int64_t groups;
  double eps;
  Resample resample;
  int64_t activate;
  void* y;
  float* stats;      // [B, groups, 2]: mean and 1 / sqrt(variance + eps)
  const void* plus;  // what x is added to first; null if absent
  double scale;      // of that sum
  void* total;       // (x + plus + row) scale, where there is a sum
  GroupNormLayout layout;
};

// group_norm_silu_vjp.
struct GroupNormVjpArgs {
  const void *v, *x, *skip, *row, *weight, *bias;
  const float* stats;
  int64_t groups;
  Resample resample;
  int64_t activate;
  const void* add;  // another cotangent of [x, skip]; null if absent
  void *v_x, *v_skip;
  const void* more;  // another cotangent of x; null if absent
  double scale;      // of v_x
  GroupNormLayout layout;
};

// What both directions ask about the shape.
struct GroupNormShape {
  int64_t batch, first, second, height, width, groups;
  Resample resample;
  bool activate;
  DType vectors;

  int64_t channels() const { return first + second; }
  int64_t pixels() const { return height * width; }
};

template <typename Args>
FASTPURE_HD GroupNormShape shape_of(const Args& args) {
  const GroupNormLayout& l = args.layout;
  return {l.batch, l.first, l.second, l.height, l.width, args.groups, args.resample, args.activate != 0, l.vectors};
}

constexpr int64_t kTileChannels = 32;   // channels handled together: one or two cache lines of every pixel
constexpr int64_t kUnitChannels = 128;  // most channels of a unit, unless a single group has more
constexpr int64_t kUnitGroups = 32;     // most groups of a unit

// Groups of one unit: as few as fill whole tiles, so that threads share no cache line and each unit stays in cache.
inline int64_t groups_per_unit(const GroupNormShape& shape) {
  const int64_t width = shape.channels() / shape.groups;
  int64_t count = 1;
  while (count * width % kTileChannels != 0 && (count + 1) * width <= kUnitChannels && count < kUnitGroups) ++count;
  return count < shape.groups ? count : shape.groups;
}

inline int64_t units_per_sample(const GroupNormShape& shape) {
  const int64_t each = groups_per_unit(shape);
  return (shape.groups + each - 1) / each;
}

}  // namespace fastpure::host
