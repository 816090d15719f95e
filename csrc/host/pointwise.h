// Activations gone over once: resampling by two and the end of a residual block. Argument blocks that cross from Python,
// as those of fastpure/args.h. Activations are dense channels_last, float32 or bfloat16; the arithmetic is float32.
#pragma once

#include <cstdint>

#include "fastpure/args.h"

namespace fastpure::host {

// out[2h + i, 2w + j] = scale x[h, w] where `spread`, else out[h, w] = scale (sum of x[2h + i, 2w + j]).
struct ResampleArgs {
  const void* x;
  int64_t spread;
  double scale;
  void* out;
  int64_t batch, channels;
  int64_t height, width;  // of the smaller image
  DType dtype;
};

// out = (a + b + bias) scale.
struct ResidualArgs {
  const void *a, *b, *bias;
  double scale;
  void* out;
  int64_t batch, channels, pixels;
  int64_t bias_stride;  // from one sample's numbers to the next: 0 or the channels
  DType vectors;        // dtype of the bias: float32 or bfloat16
  DType dtype;          // of the activations: float32 or bfloat16
};

// Pixels of one sample that are handled together.
constexpr int64_t kRowPixels = 64;

inline int64_t rows_per_sample(const ResidualArgs& args) { return (args.pixels + kRowPixels - 1) / kRowPixels; }

}  // namespace fastpure::host
