// Entry points for host memory: choose the instruction set, split the work, run it.
#pragma once

#include "fastpure/args.h"
#include "kernels.h"

namespace fastpure::host {

// Each runs on up to `threads` threads with `kernels` and returns when the result is in memory.
Status noise(const NoiseArgs& args, int threads, const Kernels& kernels);
Status affine_row(const RowArgs& args, int threads, const Kernels& kernels);
Status affine_row_vjp(const RowVjpArgs& args, int threads, const Kernels& kernels);
Status group_norm(const GroupNormArgs& args, int threads, const Kernels& kernels);
Status group_norm_vjp(const GroupNormVjpArgs& args, int threads, const Kernels& kernels);
Status resample(const ResampleArgs& args, int threads, const Kernels& kernels);
Status residual_add(const ResidualArgs& args, int threads, const Kernels& kernels);
Status network(const NetworkArgs& args, int threads, const Kernels& kernels);
Status network_vjp(const NetworkVjpArgs& args, int threads, const Kernels& kernels);

// A stretch of memory.
struct Span {
  const void* data;
  int64_t bytes;
};

// Differs, as good as surely, between two contents of the same stretches.
uint64_t fingerprint(const Span* spans, int64_t count);

}  // namespace fastpure::host
