// Four elements per thread: where they lie, how they are read and written, and their noise. One Philox call makes the
// noise of four elements that follow each other in logical C,H,W order; a thread handles such four.
//
// Free of CUDA's headers where it is compiled for the host: csrc/tests/device_check.cpp runs every thread there.
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

#include "fastpure/args.h"
#include "fastpure/philox.h"
#include "fastpure/row.h"

namespace fastpure::cuda {

constexpr int kThreads = 256;

enum class Access {
  kVector,   // contiguous, 16 bytes at a time; the last few elements one by one
  kScalar,   // contiguous, one by one: odd sizes and unaligned addresses
  kStrided,  // channels_last with generated noise: four pixels of one channel
};

// How a batch is cut into fours.
struct Cut {
  uint32_t total;       // in the batch
  uint32_t per_sample;
  int64_t channels;
  int64_t pixels;
};

// The four elements of one thread: element j lies at `first + j * stride`, for j < count.
struct Place {
  int64_t first;
  int64_t stride;
  int64_t logical;  // C,H,W index of the first inside its sample
  uint32_t sample;
  int count;
};

template <Access kAccess>
FASTPURE_HD Place locate(const Cut& cut, uint32_t index) {
  const uint32_t sample = index / cut.per_sample;
  const uint32_t rest = index - sample * cut.per_sample;
  const int64_t size = cut.channels * cut.pixels;
  Place place;
  int64_t left;
  if constexpr (kAccess == Access::kStrided) {
    const uint32_t group = rest / static_cast<uint32_t>(cut.channels);  // channels run fastest, as in memory
    const int64_t channel = rest - group * static_cast<uint32_t>(cut.channels);
    const int64_t pixel = static_cast<int64_t>(group) * 4;
    place.first = sample * size + pixel * cut.channels + channel;
    place.stride = cut.channels;
    place.logical = channel * cut.pixels + pixel;
    left = cut.pixels - pixel;
  } else {
    place.logical = static_cast<int64_t>(rest) * 4;
    place.first = sample * size + place.logical;
    place.stride = 1;
    left = size - place.logical;
  }
  place.sample = sample;
  place.count = left < 4 ? static_cast<int>(left) : 4;
  return place;
}

template <typename T>
struct Quad {
  T v[4];
};

template <typename T>
FASTPURE_HD Quad<T> zeros() {
  return {{static_cast<T>(0), static_cast<T>(0), static_cast<T>(0), static_cast<T>(0)}};
}

// 16-bit floats as they lie in memory.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTPURE_HD float widen(float a) { return a; }
FASTPURE_HD double widen(double a) { return a; }

FASTPURE_HD float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTPURE_HD float widen(BFloat16 a) { return float_of_bits(static_cast<uint32_t>(a.bits) << 16); }

FASTPURE_HD float widen(Float16 a) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(a.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(a.bits & 0x8000u) << 16;
  const uint32_t exponent = (a.bits >> 10) & 31u, fraction = a.bits & 1023u;
  if (exponent == 31) return float_of_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112u) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // exact: subnormal numbers of 16 bits
  return sign != 0 ? -tiny : tiny;
#endif
}

// What one access to memory moves.
template <typename Stored>
struct alignas(sizeof(Stored) >= 4 ? 16 : 8) Pack {
  static constexpr int kSize = sizeof(Stored) >= 4 ? 16 / static_cast<int>(sizeof(Stored)) : 4;
  Stored v[kSize];
};

template <typename T, typename Stored>
FASTPURE_HD Quad<T> load_packs(const Stored* from) {
  constexpr int kSize = Pack<Stored>::kSize;
  const Pack<Stored>* packs = reinterpret_cast<const Pack<Stored>*>(from);
  Quad<T> q;
  for (int i = 0; i < 4 / kSize; ++i) {
    const Pack<Stored> pack = packs[i];
    for (int j = 0; j < kSize; ++j) q.v[i * kSize + j] = widen(pack.v[j]);
  }
  return q;
}

template <typename T>
FASTPURE_HD void store_packs(T* to, const Quad<T>& q) {
  constexpr int kSize = Pack<T>::kSize;
  for (int i = 0; i < 4 / kSize; ++i) {
    Pack<T> pack;
    for (int j = 0; j < kSize; ++j) pack.v[j] = q.v[i * kSize + j];
    reinterpret_cast<Pack<T>*>(to)[i] = pack;
  }
}

// Reads four elements stored as Stored; elements that are not there count as 0.
template <typename T, Access kAccess, typename Stored>
FASTPURE_HD Quad<T> load_as(const void* base, const Place& place) {
  const Stored* from = static_cast<const Stored*>(base) + place.first;
  if (kAccess == Access::kVector && place.count == 4) return load_packs<T>(from);
  Quad<T> q = zeros<T>();
  for (int j = 0; j < 4; ++j) {
    if (j < place.count) q.v[j] = widen(from[j * place.stride]);
  }
  return q;
}

// Reads four elements of the dtype of the state; an absent input counts as 0.
template <typename T, Access kAccess>
FASTPURE_HD Quad<T> load(const void* base, const Place& place) {
  return base == nullptr ? zeros<T>() : load_as<T, kAccess, T>(base, place);
}

// The same for an input that may be narrower than a float32 state.
template <typename T, Access kAccess>
FASTPURE_HD Quad<T> load(const void* base, DType dtype, const Place& place) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (base != nullptr && dtype == kBFloat16) return load_as<T, kAccess, BFloat16>(base, place);
    if (base != nullptr && dtype == kFloat16) return load_as<T, kAccess, Float16>(base, place);
  }
  return load<T, kAccess>(base, place);
}

template <typename T, Access kAccess>
FASTPURE_HD void store(void* base, const Place& place, const Quad<T>& q) {
  T* to = static_cast<T*>(base) + place.first;
  if (kAccess == Access::kVector && place.count == 4) return store_packs(to, q);
  for (int j = 0; j < 4; ++j) {
    if (j < place.count) to[j * place.stride] = q.v[j];
  }
}

// What the counter and the key of one sample have in common.
struct SampleKey {
  uint32_t c1, c2, c3, k0, k1;
};

template <typename T>
FASTPURE_HD Quad<T> values_of(const SampleKey& k, uint32_t quad, NoiseKind kind) {
  const Words w = philox4x32_10(quad, k.c1, k.c2, k.c3, k.k0, k.k1);
  Quad<T> q;
  if (kind == kNormal) {
    normal_pair<T>(w.w0, w.w1, q.v[0], q.v[1]);
    normal_pair<T>(w.w2, w.w3, q.v[2], q.v[3]);
  } else {
    q = {{uniform_from<T>(w.w0), uniform_from<T>(w.w1), uniform_from<T>(w.w2), uniform_from<T>(w.w3)}};
  }
  return q;
}

// Noise of the four elements at `place`.
template <typename T, Access kAccess>
FASTPURE_HD Quad<T> generate(const NoiseSource& source, NoiseKind kind, const Place& place) {
  const uint64_t seed = static_cast<uint64_t>(*source.seed);
  const SampleKey key = {counter_word(static_cast<uint32_t>(*source.step), static_cast<uint32_t>(source.stream),
                                      static_cast<uint32_t>(source.domain)),
                         static_cast<uint32_t>(source.sample_ids[place.sample]),
                         static_cast<uint32_t>(source.draws[place.sample]), static_cast<uint32_t>(seed),
                         static_cast<uint32_t>(seed >> 32)};
  const uint32_t quad = static_cast<uint32_t>(place.logical / 4);
  const Quad<T> a = values_of<T>(key, quad, kind);
  if constexpr (kAccess == Access::kStrided) {
    // A channel may begin inside a four when the number of pixels is no multiple of 4.
    const int shift = static_cast<int>(place.logical & 3);
    if (shift != 0) {
      const Quad<T> b = values_of<T>(key, quad + 1, kind);
      if (shift == 1) return {{a.v[1], a.v[2], a.v[3], b.v[0]}};
      if (shift == 2) return {{a.v[2], a.v[3], b.v[0], b.v[1]}};
      return {{a.v[3], b.v[0], b.v[1], b.v[2]}};
    }
  }
  return a;
}

template <typename T>
FASTPURE_HD T not_a_number() {
  return static_cast<T>(float_of_bits(0x7FC00000u));
}

// The row of the table that `step` names. A step outside, or a row that cannot run, cannot be reported from here
// without stopping the host; it makes every result NaN, and no memory outside the table is read.
template <typename T>
FASTPURE_HD Row<T> read_row(const void* table, const int64_t* step, int64_t rows, bool has_state) {
  const int64_t k = *step;
  const bool inside = k >= 0 && k < rows;
  Row<T> row = load_row<T>(table, inside ? k : 0);
  if (!inside || (!has_state && row.clip != static_cast<T>(0))) {
    row.a = row.b = row.c = row.p = row.q = row.r = row.u = row.s = not_a_number<T>();
    row.clip = static_cast<T>(0);
  }
  return row;
}

}  // namespace fastpure::cuda
