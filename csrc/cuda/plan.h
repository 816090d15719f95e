// Before a launch: how a batch is cut into fours, how they are accessed, and whether the arguments make sense. Plain
// C++, shared with csrc/tests/device_check.cpp.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/quad.h"

namespace fastpure::cuda {

// A batch cut into fours, and how to read them.
struct Plan {
  Cut cut;
  Access access;
  bool fits;  // whether 32 bits number the fours
};

inline bool aligned(const void* address, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) == 0;
}

inline bool all_aligned(std::initializer_list<const void*> addresses) {
  for (const void* address : addresses) {
    if (!aligned(address, 16)) return false;
  }
  return true;
}

// Bytes that four elements take, at most 16: the widest single access.
inline int64_t access_bytes(DType dtype) { return dtype == kBFloat16 || dtype == kFloat16 ? 8 : 16; }

// `numbered`: noise is generated, so samples and logical positions count; otherwise the batch is one long array.
inline Plan make_plan(const BatchShape& shape, bool numbered, bool vectors) {
  const bool strided = numbered && shape.layout == kChannelsLast;
  const int64_t samples = numbered ? shape.batch : 1;
  const int64_t channels = numbered ? shape.channels : shape.batch * shape.channels;
  const int64_t size = channels * shape.pixels;
  const int64_t per_sample = strided ? channels * ((shape.pixels + 3) / 4) : (size + 3) / 4;
  const int64_t total = samples * per_sample;
  const bool whole = samples == 1 || size % 4 == 0;  // every sample begins at a multiple of 16 bytes
  const Access access = strided ? Access::kStrided : vectors && whole ? Access::kVector : Access::kScalar;
  return {{static_cast<uint32_t>(total), static_cast<uint32_t>(per_sample), channels, shape.pixels},
          access,
          total <= static_cast<int64_t>(UINT32_MAX) - kThreads};
}

inline bool valid(const BatchShape& shape) {
  return (shape.layout == kContiguous || shape.layout == kChannelsLast) && shape.batch >= 0 &&
         shape.channels >= 0 && shape.pixels >= 0;
}

inline bool is_state(DType dtype) { return dtype == kFloat32 || dtype == kFloat64; }

// Whether an input of this dtype may stand beside a state of that one.
inline bool is_input(DType dtype, DType state) {
  return dtype == state || (state == kFloat32 && (dtype == kBFloat16 || dtype == kFloat16));
}

inline Plan plan_noise(const NoiseArgs& args) { return make_plan(args.shape, true, all_aligned({args.out})); }

inline Plan plan_row(const RowArgs& args) {
  const bool vectors = all_aligned({args.x, args.register_in, args.noise, args.x_next, args.register_next}) &&
                       aligned(args.noise_pred, access_bytes(args.noise_pred_dtype)) &&
                       aligned(args.guidance, access_bytes(args.guidance_dtype));
  return make_plan(args.shape, args.seed != nullptr, vectors);
}

inline Plan plan_vjp(const RowVjpArgs& args) {
  const bool vectors = all_aligned({args.v, args.v_register, args.x, args.v_x, args.v_noise_pred, args.v_guidance,
                                    args.v_register_out}) &&
                       aligned(args.noise_pred, access_bytes(args.noise_pred_dtype));
  return make_plan({1, 1, args.elements, kContiguous}, false, vectors);
}

// What is wrong with the arguments; kOk if nothing is. An absent input may have any dtype.
inline Status check(const RowArgs& args) {
  if (!is_state(args.dtype)) return kBadDType;
  if (args.noise_pred != nullptr && !is_input(args.noise_pred_dtype, args.dtype)) return kBadDType;
  if (args.guidance != nullptr && !is_input(args.guidance_dtype, args.dtype)) return kBadDType;
  return valid(args.shape) ? kOk : kBadLayout;
}

inline Status check(const RowVjpArgs& args) {
  if (!is_state(args.dtype)) return kBadDType;
  return args.noise_pred == nullptr || is_input(args.noise_pred_dtype, args.dtype) ? kOk : kBadDType;
}

inline Status check(const NoiseArgs& args) {
  if (!is_state(args.dtype)) return kBadDType;
  if (!valid(args.shape)) return kBadLayout;
  return args.kind == kNormal || args.kind == kUniform ? kOk : kBadKind;
}

}  // namespace fastpure::cuda
