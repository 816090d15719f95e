// A narrow U-Net as a program of steps that run one after another for one sample: argument blocks.
//
// Where images and channels are few, a network's time goes into starting operations and into carrying activations
// through memory, not into arithmetic. Here a thread takes a sample through the whole network, and what passes between
// normalisations, convolutions and attention stays in its cache. Nothing depends on the batch or on other threads.
//
// Activations are [H, W, C] per sample, float32 or bfloat16 (products of bfloat16 are summed in float32). Weights of
// convolutions are packed by fastpure/kernels/network.py: [outputs in blocks of 32 or 16][k k][inputs][block], and for
// bfloat16 two inputs side by side: [..][inputs / 2][block][2].
#pragma once

#include <cstdint>

#include "fastpure/args.h"
#include "group_norm.h"

namespace fastpure::host {

enum StepKind : int64_t {
  kConvolution = 0,  // conv(x) + bias
  kBlock = 1,        // (shortcut + conv(SiLU(norm(conv(R(SiLU(norm([x, skip])))) + row))) + row) scale
  kAttention = 2,    // (x + project(softmax(q k^T / sqrt(C)) v) + bias) scale, q, k, v = map(norm(x)) + bias
  kHead = 3,         // conv(SiLU(norm(x))) + bias
};

constexpr int64_t kOutside = -1;  // the network's own input or output, where a step has an offset
constexpr int64_t kAbsent = -2;

// Offsets are in elements: of activations into the tape, of cotangents into the other tape, of statistics into theirs.
struct NetworkStep {
  StepKind kind;
  int64_t input, skip, output, middle;  // `middle`: between a block's convolutions (row added), or q, k and v
  int64_t v_input, v_skip, v_output;
  int64_t adds;                         // whether v_input already holds another cotangent
  int64_t height, width;                // of the input
  int64_t inputs, skips, outputs;       // channels
  Resample resample;
  int64_t groups, second_groups;
  double eps, scale;
  int64_t row;                          // column of the rows where the block's two begin
  int64_t stats, second_stats;
  const void *norm_weight, *norm_bias, *second_norm_weight, *second_norm_bias;
  const void *first, *second, *shortcut;  // packed; the shortcut null where it is the input itself
  const void *first_back, *second_back, *shortcut_back;
  const void *first_bias, *second_bias;   // null in blocks, whose rows have them
};

static_assert(sizeof(NetworkStep) == 34 * sizeof(int64_t), "fields of 64 bits each, as they cross from Python");

// What both directions are told.
struct NetworkLayout {
  int64_t batch, steps;
  int64_t row_stride;                 // from one sample's rows to the next: 0 or their number
  int64_t tape_size, stats_size;      // per sample
  int64_t cotangents_size;            // per thread
  int64_t image_in, image_out;        // elements of an image that goes in or comes out
  DType dtype;
};

struct NetworkArgs {
  const void *x, *rows;
  const NetworkStep* program;
  void *out, *tape;  // tape and stats null where nothing is kept: threads then use memory of their own
  float* stats;
  NetworkLayout layout;
};

struct NetworkVjpArgs {
  const void *v, *rows;
  const NetworkStep* program;
  const void* tape;
  const float* stats;
  void* v_x;
  NetworkLayout layout;
};

}  // namespace fastpure::host
