// The inner loops. Included once per instruction set by isa_*.cpp, which defines FASTPURE_ISA and FASTPURE_ISA_TABLE.
//
// Everything has internal linkage. Loops are written so that the compiler vectorises them; vector body and scalar
// rest execute the same correctly rounded operations, so a value never depends on where its element lies.
#include <cstdint>
#include <cstring>

#include "fastpure/philox.h"
#include "fastpure/row.h"
#include "kernels.h"

#define FASTPURE_STRING_(x) #x
#define FASTPURE_STRING(x) FASTPURE_STRING_(x)
#if defined(__clang__)
#define FASTPURE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTPURE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fastpure::host {
namespace {
namespace FASTPURE_ISA {

constexpr int kLanes = 16;                       // quads are generated in multiples of this
constexpr int kQuads = kTile / 4 + 2 * kLanes;  // most quads a tile can touch, rounded up

// Not std::min: nothing compiled here may be shared with code for other machines.
static inline int64_t smaller(int64_t a, int64_t b) { return b < a ? b : a; }

// Words of consecutive quads, one array per word.
struct WordTile {
  alignas(64) uint32_t w[4][kQuads];
};

// What the counter and the key of one sample have in common.
struct SampleKey {
  uint32_t c1, c2, c3, k0, k1;
};

static inline SampleKey sample_key(const NoiseSource& source, int64_t sample) {
  const uint64_t seed = static_cast<uint64_t>(*source.seed);
  return {counter_word(static_cast<uint32_t>(*source.step), static_cast<uint32_t>(source.stream),
                       static_cast<uint32_t>(source.domain)),
          static_cast<uint32_t>(source.sample_ids[sample]), static_cast<uint32_t>(source.draws[sample]),
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

static void fill_words(const SampleKey& key, uint32_t first_quad, int quads, WordTile& words) {
  const SampleKey k = key;
  for (int i = 0; i < quads; ++i) {
    const Words w = philox4x32_10(first_quad + static_cast<uint32_t>(i), k.c1, k.c2, k.c3, k.k0, k.k1);
    words.w[0][i] = w.w0;
    words.w[1][i] = w.w1;
    words.w[2][i] = w.w2;
    words.w[3][i] = w.w3;
  }
}

template <typename T>
static void words_to_values(const WordTile& words, int quads, NoiseKind kind, T* values) {
  alignas(64) T part[4][kQuads];
  if (kind == kNormal) {
    for (int half = 0; half < 4; half += 2) {
      for (int i = 0; i < quads; ++i) {
        T first, second;
        normal_pair<T>(words.w[half][i], words.w[half + 1][i], first, second);
        part[half][i] = first;
        part[half + 1][i] = second;
      }
    }
  } else {
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < quads; ++i) part[j][i] = uniform_from<T>(words.w[j][i]);
    }
  }
  for (int i = 0; i < quads; ++i) {
    values[4 * i + 0] = part[0][i];
    values[4 * i + 1] = part[1][i];
    values[4 * i + 2] = part[2][i];
    values[4 * i + 3] = part[3][i];
  }
}

// Values of the logical elements [begin, end) of a sample. Returns where the first of them is inside `scratch`.
template <typename T>
static const T* fill_range(const SampleKey& key, NoiseKind kind, int64_t begin, int64_t end, T* scratch) {
  const int64_t first_quad = begin / 4;
  const int needed = static_cast<int>((end + 3) / 4 - first_quad);
  const int quads = (needed + kLanes - 1) / kLanes * kLanes;
  WordTile words;
  fill_words(key, static_cast<uint32_t>(first_quad), quads, words);
  words_to_values<T>(words, quads, kind, scratch);
  return scratch + (begin - 4 * first_quad);
}

// Noise of the memory range [begin, end) of a sample, in memory order: the values belong to the logical C,H,W
// index, so for channels_last each channel's stretch of pixels is generated and spread out.
template <typename T>
static const T* noise_tile(const NoiseSource& source, NoiseKind kind, const BatchShape& shape, int64_t sample,
                           int64_t begin, int64_t end, T* scratch, T* spread) {
  const SampleKey key = sample_key(source, sample);
  if (shape.layout == kContiguous) return fill_range<T>(key, kind, begin, end, scratch);
  const int64_t channels = shape.channels;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t first = begin > c ? (begin - c + channels - 1) / channels : 0;  // pixels p with
    const int64_t last = end > c ? (end - c + channels - 1) / channels : 0;       // begin <= p C + c < end
    if (first >= last) continue;
    const int64_t offset = c * shape.pixels;
    const T* values = fill_range<T>(key, kind, offset + first, offset + last, scratch);
    T* target = spread + (first * channels + c - begin);
    for (int64_t i = 0; i < last - first; ++i) target[i * channels] = values[i];
  }
  return spread;
}

// Calls body(sample, begin, end, offset) for each tile: a memory range inside a sample, and its place in the batch.
template <typename Body>
static void for_tiles(const BatchShape& shape, int64_t begin, int64_t end, const Body& body) {
  const int64_t size = shape.channels * shape.pixels;
  const int64_t per_sample = tiles_per_sample(shape);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t sample = tile / per_sample;
    const int64_t from = (tile - sample * per_sample) * kTile;
    body(sample, from, smaller(from + kTile, size), sample * size + from);
  }
}

template <typename T>
static void noise_tiles(const NoiseArgs& args, int64_t begin, int64_t end) {
  alignas(64) T scratch[4 * kQuads];
  alignas(64) T spread[kTile];
  T* out = static_cast<T*>(args.out);
  for_tiles(args.shape, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t offset) {
    const T* values = noise_tile<T>(args.source, args.kind, args.shape, sample, from, to, scratch, spread);
    std::memcpy(out + offset, values, static_cast<size_t>(to - from) * sizeof(T));
  });
}

// The pointers of one tile; absent inputs point at zeros.
template <typename T>
struct RowTile {
  const T *x, *e, *g, *h, *z;
  T *x_next, *h_next;
};

// What a row has, as template arguments, so that absent inputs cost neither loads nor arithmetic.
template <typename T, bool kClip, bool kRegister, bool kGuidance, bool kNoise>
static void row_loop(const Row<T>& coefficients, const RowTile<T>& tile, int64_t count) {
  const Row<T> row = coefficients;
  const T zero = static_cast<T>(0);
  const T *x = tile.x, *e = tile.e, *g = tile.g, *h = tile.h, *z = tile.z;
  T *x_next = tile.x_next, *h_next = tile.h_next;
  FASTPURE_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const T xi = x[i], gi = kGuidance ? g[i] : zero, hi = kRegister ? h[i] : zero, zi = kNoise ? z[i] : zero;
    const T ei = kClip ? clipped_noise_pred(row, xi, e[i]) : e[i];
    x_next[i] = next_state<kGuidance, kRegister, kNoise>(row, xi, ei, gi, hi, zi);
    if (kRegister) h_next[i] = next_register<kGuidance>(row, xi, ei, gi, hi);
  }
}

template <typename T>
using RowLoop = void (*)(const Row<T>&, const RowTile<T>&, int64_t);

template <typename T, bool kClip, bool kRegister>
static RowLoop<T> pick_inputs(bool guidance, bool noise) {
  if (guidance) return noise ? row_loop<T, kClip, kRegister, true, true> : row_loop<T, kClip, kRegister, true, false>;
  return noise ? row_loop<T, kClip, kRegister, false, true> : row_loop<T, kClip, kRegister, false, false>;
}

template <typename T>
static RowLoop<T> pick_row_loop(bool clip, bool with_register, bool guidance, bool noise) {
  if (clip) return (with_register ? pick_inputs<T, true, true> : pick_inputs<T, true, false>)(guidance, noise);
  return (with_register ? pick_inputs<T, false, true> : pick_inputs<T, false, false>)(guidance, noise);
}

template <typename T>
static const T* zeros() {
  alignas(64) static const T values[kTile] = {};
  return values;
}

// `base` moved to the tile, or zeros where the input is absent.
template <typename T>
static const T* at(const void* base, int64_t offset) {
  return base == nullptr ? zeros<T>() : static_cast<const T*>(base) + offset;
}

template <typename T>
static void row_tiles(const RowArgs& args, int64_t begin, int64_t end) {
  alignas(64) T scratch[4 * kQuads];
  alignas(64) T spread[kTile];
  alignas(64) T unused[kTile];
  const Row<T> row = load_row<T>(args.table, *args.step);
  const bool noisy = row.d != static_cast<T>(0);
  const NoiseSource source = source_of(args);
  const bool generate = noisy && source.seed != nullptr;
  const void* given = noisy ? args.noise : nullptr;
  T* h_next = static_cast<T*>(args.register_next);
  const RowLoop<T> loop =
      pick_row_loop<T>(row.clip != static_cast<T>(0), args.register_in != nullptr || h_next != nullptr,
                       args.guidance != nullptr, generate || given != nullptr);
  for_tiles(args.shape, begin, end, [&](int64_t sample, int64_t from, int64_t to, int64_t offset) {
    const T* z = generate ? noise_tile<T>(source, kNormal, args.shape, sample, from, to, scratch, spread)
                          : at<T>(given, offset);
    const RowTile<T> tile = {at<T>(args.x, offset),
                             at<T>(args.noise_pred, offset),
                             at<T>(args.guidance, offset),
                             at<T>(args.register_in, offset),
                             z,
                             static_cast<T*>(args.x_next) + offset,
                             h_next != nullptr ? h_next + offset : unused};
    loop(row, tile, to - from);
  });
}

// The pointers of one tile of the transposed row; v_g and v_h are null where they are not wanted.
template <typename T>
struct VjpTile {
  const T *v, *w, *x, *e;
  T *v_x, *v_e, *v_g, *v_h;
};

template <typename T, bool kClip, bool kRegister>
static void vjp_loop(const Row<T>& coefficients, const VjpTile<T>& tile, int64_t count) {
  const Row<T> row = coefficients;
  const T zero = static_cast<T>(0);
  const T *v = tile.v, *w = tile.w, *x = tile.x, *e = tile.e;
  T *v_x = tile.v_x, *v_e = tile.v_e, *v_g = tile.v_g, *v_h = tile.v_h;
  FASTPURE_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) {
    const T vi = v[i], wi = kRegister ? w[i] : zero;
    const T ve = v_noise_pred_inside<kRegister>(row, vi, wi);
    const T vx = v_state_inside<kRegister>(row, vi, wi);
    if (kClip) {
      const bool outside = is_outside(predicted_image(row, x[i], e[i]));
      const T clipped = v_state_outside<kRegister>(row, vi, wi, ve);
      v_x[i] = outside ? clipped : vx;
      v_e[i] = outside ? zero : ve;
    } else {
      v_x[i] = vx;
      v_e[i] = ve;
    }
  }
  if (v_g != nullptr) {
    FASTPURE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) v_g[i] = v_guidance<kRegister>(row, v[i], kRegister ? w[i] : zero);
  }
  if (v_h != nullptr) {
    FASTPURE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) v_h[i] = v_register<kRegister>(row, v[i], kRegister ? w[i] : zero);
  }
}

template <typename T>
static void vjp_tiles(const RowVjpArgs& args, int64_t begin, int64_t end) {
  const Row<T> row = load_row<T>(args.table, *args.step);
  const bool clip = row.clip != static_cast<T>(0) && args.x != nullptr;
  const auto loop = args.v_register != nullptr ? (clip ? vjp_loop<T, true, true> : vjp_loop<T, false, true>)
                                               : (clip ? vjp_loop<T, true, false> : vjp_loop<T, false, false>);
  const auto moved = [](void* base, int64_t offset) {
    return base == nullptr ? nullptr : static_cast<T*>(base) + offset;
  };
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t offset = tile * kTile;
    const VjpTile<T> pointers = {at<T>(args.v, offset),
                                 at<T>(args.v_register, offset),
                                 at<T>(args.x, offset),
                                 at<T>(args.noise_pred, offset),
                                 moved(args.v_x, offset),
                                 moved(args.v_noise_pred, offset),
                                 moved(args.v_guidance, offset),
                                 moved(args.v_register_out, offset)};
    loop(row, pointers, smaller(kTile, args.elements - offset));
  }
}

#include "lanes.inl"
#include "group_norm.inl"
#include "group_norm_vjp.inl"
#include "pointwise.inl"

template <typename T, typename Args>
static void group_norm_any(const Args& args, int64_t begin, int64_t end) {
  const bool common = args.activate != 0 && args.resample == kKeep;
  return common ? group_norm_units<T, true>(args, begin, end) : group_norm_units<T, false>(args, begin, end);
}

#include "convolution.inl"
#include "network_steps.inl"
#include "attention.inl"
#include "network.inl"

}  // namespace FASTPURE_ISA
}  // namespace

#if defined(FASTPURE_BF16_PRODUCTS)
// All that this instruction set does better than the one below it.
const Bf16Products FASTPURE_ISA_TABLE = {
    FASTPURE_STRING(FASTPURE_ISA),
    FASTPURE_ISA::network_samples<FASTPURE_ISA::BFloat16>,
    FASTPURE_ISA::network_samples<FASTPURE_ISA::BFloat16>,
};
#else
const Kernels FASTPURE_ISA_TABLE = {
    FASTPURE_STRING(FASTPURE_ISA),
    FASTPURE_ISA::noise_tiles<float>, FASTPURE_ISA::noise_tiles<double>,
    FASTPURE_ISA::row_tiles<float>,   FASTPURE_ISA::row_tiles<double>,
    FASTPURE_ISA::vjp_tiles<float>,   FASTPURE_ISA::vjp_tiles<double>,
    FASTPURE_ISA::group_norm_any<float, GroupNormArgs>,
    FASTPURE_ISA::group_norm_any<FASTPURE_ISA::BFloat16, GroupNormArgs>,
    FASTPURE_ISA::group_norm_any<float, GroupNormVjpArgs>,
    FASTPURE_ISA::group_norm_any<FASTPURE_ISA::BFloat16, GroupNormVjpArgs>,
    FASTPURE_ISA::resample_rows<float>,
    FASTPURE_ISA::resample_rows<FASTPURE_ISA::BFloat16>,
    FASTPURE_ISA::residual_rows<float>,
    FASTPURE_ISA::residual_rows<FASTPURE_ISA::BFloat16>,
    FASTPURE_ISA::network_samples<float>,
    FASTPURE_ISA::network_samples<FASTPURE_ISA::BFloat16>,
    FASTPURE_ISA::network_samples<float>,
    FASTPURE_ISA::network_samples<FASTPURE_ISA::BFloat16>,
};
#endif

}  // namespace fastpure::host
