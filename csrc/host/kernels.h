// The inner loops, compiled once per instruction set and chosen when the program runs.
#pragma once

#include <cstdint>

#include "fastpure/args.h"
#include "group_norm.h"
#include "memory.h"
#include "network.h"
#include "pointwise.h"

namespace fastpure::host {

// Elements of one sample that are handled together; small enough for its scratch to stay in the first-level cache.
constexpr int64_t kTile = 1024;

// Tiles never cross samples, so that the noise of a sample is cut up in the same way in every batch.
inline int64_t tiles_per_sample(const BatchShape& shape) {
  return (shape.channels * shape.pixels + kTile - 1) / kTile;
}

// Each function handles the tiles (or elements, or units) [begin, end). Ranges may run in any order and on any thread.
struct Kernels {
  const char* name;
  void (*noise_f32)(const NoiseArgs&, int64_t begin, int64_t end);
  void (*noise_f64)(const NoiseArgs&, int64_t begin, int64_t end);
  void (*row_f32)(const RowArgs&, int64_t begin, int64_t end);
  void (*row_f64)(const RowArgs&, int64_t begin, int64_t end);
  void (*vjp_f32)(const RowVjpArgs&, int64_t begin, int64_t end);
  void (*vjp_f64)(const RowVjpArgs&, int64_t begin, int64_t end);
  void (*group_norm_f32)(const GroupNormArgs&, int64_t begin, int64_t end);
  void (*group_norm_bf16)(const GroupNormArgs&, int64_t begin, int64_t end);
  void (*group_norm_vjp_f32)(const GroupNormVjpArgs&, int64_t begin, int64_t end);
  void (*group_norm_vjp_bf16)(const GroupNormVjpArgs&, int64_t begin, int64_t end);
  void (*resample_f32)(const ResampleArgs&, int64_t begin, int64_t end);
  void (*resample_bf16)(const ResampleArgs&, int64_t begin, int64_t end);
  void (*residual_f32)(const ResidualArgs&, int64_t begin, int64_t end);
  void (*residual_bf16)(const ResidualArgs&, int64_t begin, int64_t end);
  void (*network_f32)(const NetworkArgs&, int64_t begin, int64_t end);
  void (*network_bf16)(const NetworkArgs&, int64_t begin, int64_t end);
  void (*network_vjp_f32)(const NetworkVjpArgs&, int64_t begin, int64_t end);
  void (*network_vjp_bf16)(const NetworkVjpArgs&, int64_t begin, int64_t end);
};

// The functions of a set that have products of bfloat16.
struct Bf16Products {
  const char* name;
  void (*network)(const NetworkArgs&, int64_t begin, int64_t end);
  void (*network_vjp)(const NetworkVjpArgs&, int64_t begin, int64_t end);
};

extern const Kernels kBaseline;
#if defined(__x86_64__)
#define FASTPURE_X86_CLONES 1
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Bf16Products kAvx512Bf16;
#endif

constexpr int kInstructionSets = 4;

// Instruction sets this machine can run, best first; the last one is always the baseline.
int available_kernels(const Kernels* (&list)[kInstructionSets]);

// The best set, or the one called `name` (null: the best); null if this machine cannot run it.
const Kernels* find_kernels(const char* name);

}  // namespace fastpure::host
