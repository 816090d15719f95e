// GroupNorm + SiLU (+ 2x resampling) and its transpose: argument blocks, and how the work is cut up.
//
// Activations are dense channels_last: [B, H, W, C] in memory. The work is cut into units, a few whole groups of one
// sample each, which depend on nothing but themselves. The cut depends on the shape alone and every sum runs over
// the pixels in order, channel by channel, so results have the same bits on any number of threads and in any batch.
#pragma once

#include <cstdint>

#include "fastpure/args.h"

namespace fastpure::host {

enum Resample : int32_t { kKeep = 0, kUp = 1, kDown = 2 };

// Numbers per channel: [C] for all samples (stride 0) or [B, C] (stride C); null if absent.
struct ChannelVector {
  const void* values;
  int64_t stride;
};

struct GroupNormShape {
  int64_t batch;
  int64_t first, second;  // channels of x and of skip (0 without one)
  int64_t height, width;  // of the input
  int64_t groups;
  Resample resample;
  bool activate;
  DType vectors;  // dtype of row, weight and bias: float32 or bfloat16

  int64_t channels() const { return first + second; }
  int64_t pixels() const { return height * width; }
};

struct GroupNormArgs {
  GroupNormShape shape;
  const void *x, *skip;
  ChannelVector row, weight, bias;
  double eps;
  void* y;
  float* stats;  // [B, groups, 2]: mean and 1 / sqrt(variance + eps)
};

struct GroupNormVjpArgs {
  GroupNormShape shape;
  const void *v, *x, *skip;
  ChannelVector row, weight, bias;
  const float* stats;
  const void* add;  // another cotangent of [x, skip]; null if absent
  void *v_x, *v_skip;
};

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
