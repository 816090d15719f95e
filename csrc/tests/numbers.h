// What the checks of activations share: bfloat16 as its bits, random numbers, and every instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "checking.h"
#include "fastpure/philox.h"
#include "host/kernels.h"

namespace checking {

// Rounded to nearest, ties to even.
template <typename T>
T narrow(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<T>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

inline double widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}

inline double widen(float value) { return static_cast<double>(value); }

template <typename T>
constexpr fastpure::DType dtype_of() {
  return sizeof(T) == 2 ? fastpure::kBFloat16 : fastpure::kFloat32;
}

// Standard normal numbers; another stream, other numbers.
template <typename T>
void fill(T* data, int64_t count, uint32_t stream, float scale = 1.0f) {
  for (int64_t i = 0; i < count; ++i) {
    float z, unused;
    const fastpure::Words w = fastpure::philox4x32_10(static_cast<uint32_t>(i), stream, 5, 5, 5, 5);
    fastpure::normal_pair<float>(w.w0, w.w1, z, unused);
    data[i] = narrow<T>(z * scale);
  }
}

// A buffer of such numbers.
template <typename T>
Guarded<T> normal(int64_t count, uint32_t stream, float scale = 1.0f) {
  Guarded<T> made(count);
  fill(made.get(), count, stream, scale);
  return made;
}

// Calls body(kernels, threads) for every instruction set this machine has, and for one thread and four.
template <typename Body>
void everywhere(const Body& body) {
  const fastpure::host::Kernels* list[fastpure::host::kInstructionSets];
  const int count = fastpure::host::available_kernels(list);
  for (int i = 0; i < count; ++i) {
    for (const int threads : {1, 4}) body(*list[i], threads);
  }
}

// Units in the last place of float32 between a number and the exact one.
inline double units_off(float found, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(static_cast<double>(found) - exact) / std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

}  // namespace checking
