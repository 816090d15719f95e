// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), uniforms, and normals by Box-Muller.
//
// Everything is branch-free and built from integer arithmetic, multiplication, addition, fused multiply-add and
// square root only, each correctly rounded. With contraction switched off the results are therefore the same bits on
// every instruction set and on accelerators, in vector code and in scalar code.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastpure/args.h"

namespace fastpure {

struct Words {
  uint32_t w0, w1, w2, w3;
};

FASTPURE_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

FASTPURE_HD double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

FASTPURE_HD float square_root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

FASTPURE_HD double square_root(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return __builtin_sqrt(a);
#endif
}

FASTPURE_HD uint32_t high_word(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// Ten rounds of Philox 4x32 on the counter (c0, c1, c2, c3) with the key (k0, k1).
FASTPURE_HD Words philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint32_t even_high = high_word(c0, 0xD2511F53u), even_low = c0 * 0xD2511F53u;
    const uint32_t odd_high = high_word(c2, 0xCD9E8D57u), odd_low = c2 * 0xCD9E8D57u;
    c0 = odd_high ^ c1 ^ k0;
    c1 = odd_low;
    c2 = even_high ^ c3 ^ k1;
    c3 = even_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

// The counter word that holds step, stream and domain.
FASTPURE_HD uint32_t counter_word(uint32_t step, uint32_t stream, uint32_t domain) {
  return (step & 0xFFFFu) | (stream << 16) | (domain << 24);
}

// The uniform number of a word: ((word >> 9) + 1/2) * 2^-23, exact in float and double, never 0 or 1.
template <typename T>
FASTPURE_HD T uniform_from(uint32_t word) {
  const T whole = static_cast<T>(static_cast<int32_t>(word >> 9));
  return (whole + static_cast<T>(0.5)) * static_cast<T>(1.0 / 8388608.0);
}

// ln(u) for u in [2^-24, 1). u = m 2^e with m in [sqrt(1/2), sqrt(2)); then ln(m) by a polynomial in m - 1, fitted
// at Chebyshev nodes (relative error 1.5e-8 before rounding).
FASTPURE_HD float log_of_uniform(float u) {
  uint32_t bits;
  std::memcpy(&bits, &u, sizeof bits);
  const uint32_t shifted = bits - 0x3F3504F3u;  // bits of sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(shifted) >> 23;
  const uint32_t mantissa = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  float m;
  std::memcpy(&m, &mantissa, sizeof m);
  const float f = m - 1.0f;
  float poly = -0.07673641f;
  poly = fused(poly, f, 0.12722673f);
  poly = fused(poly, f, -0.13127555f);
  poly = fused(poly, f, 0.14204855f);
  poly = fused(poly, f, -0.16626646f);
  poly = fused(poly, f, 0.20001234f);
  poly = fused(poly, f, -0.2500078f);
  poly = fused(poly, f, 0.3333333f);
  poly = fused(poly, f, -0.49999997f);
  const float log_m = fused(f * f, poly, f);
  return fused(static_cast<float>(exponent), 0.69314718f, log_m);
}

// The same in double: with s = (m - 1) / (m + 1), ln(m) = 2 s + s^3 R(s^2) (error of R 3.2e-16).
FASTPURE_HD double log_of_uniform(double u) {
  uint64_t bits;
  std::memcpy(&bits, &u, sizeof bits);
  const uint64_t shifted = bits - 0x3FE6A09E667F3BCDull;  // bits of sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(static_cast<uint32_t>(shifted >> 32)) >> 20;
  const uint64_t mantissa = (shifted & 0x000FFFFFFFFFFFFFull) + 0x3FE6A09E667F3BCDull;
  double m;
  std::memcpy(&m, &mantissa, sizeof m);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double poly = 0.14616449685043406;
  poly = fused(poly, z, 0.15331721600556042);
  poly = fused(poly, z, 0.18182889125261723);
  poly = fused(poly, z, 0.2222221113479508);
  poly = fused(poly, z, 0.28571428625975487);
  poly = fused(poly, z, 0.39999999999899505);
  poly = fused(poly, z, 0.666666666666667);
  const double log_m = fused(s * z, poly, s + s);
  return fused(static_cast<double>(exponent), 0.6931471805599453, log_m);
}

// sin(pi/2 f) and cos(pi/2 f) for |f| <= 1/2, polynomials in f^2.
FASTPURE_HD void quarter_turn(float f, float& sine, float& cosine) {
  const float z = f * f;
  float s = -0.004602149f;
  s = fused(s, z, 0.07968022f);
  s = fused(s, z, -0.6459635f);
  s = fused(s, z, 1.5707964f);
  sine = s * f;
  float c = 0.00090362807f;
  c = fused(c, z, -0.02086007f);
  c = fused(c, z, 0.2536692f);
  c = fused(c, z, -1.2337005f);
  cosine = fused(c, z, 1.0f);
}

FASTPURE_HD void quarter_turn(double f, double& sine, double& cosine) {
  const double z = f * f;
  double s = -6.627624938992472e-10;
  s = fused(s, z, 5.691927850489633e-08);
  s = fused(s, z, -3.598842717144858e-06);
  s = fused(s, z, 0.0001604411847266723);
  s = fused(s, z, -0.004681754135314827);
  s = fused(s, z, 0.07969262624616692);
  s = fused(s, z, -0.6459640975062463);
  s = fused(s, z, 1.5707963267948966);
  sine = s * f;
  double c = 6.506654235424698e-11;
  c = fused(c, z, -6.386325463386356e-09);
  c = fused(c, z, 4.7108740775364384e-07);
  c = fused(c, z, -2.5202042362733303e-05);
  c = fused(c, z, 0.0009192602748385331);
  c = fused(c, z, -0.020863480763352916);
  c = fused(c, z, 0.25366950790104803);
  c = fused(c, z, -1.2337005501361697);
  cosine = fused(c, z, 1.0);
}

// Box-Muller: sqrt(-2 ln u_even) (cos, sin)(2 pi u_odd), u the uniforms of the two words. The angle is split into
// quarter turns and a rest in integers, so nothing is lost in the reduction.
template <typename T>
FASTPURE_HD void normal_pair(uint32_t even, uint32_t odd, T& first, T& second) {
  const T radius = square_root(static_cast<T>(-2.0) * log_of_uniform(uniform_from<T>(even)));
  const int32_t turn = static_cast<int32_t>(odd >> 9);     // 4 u = (turn + 1/2) 2^-21
  const int32_t quarter = (turn + (1 << 20)) >> 21;        // 0..4
  const int32_t rest = turn - quarter * (1 << 21);
  T sine, cosine;
  quarter_turn((static_cast<T>(rest) + static_cast<T>(0.5)) * static_cast<T>(1.0 / 2097152.0), sine, cosine);
  const bool swap = (quarter & 1) != 0;
  const T along = swap ? sine : cosine;
  const T across = swap ? cosine : sine;
  // Signs as factors: selections of -a against a would be the same, but this keeps to plain arithmetic.
  const T sign_along = static_cast<T>(1 - ((quarter + 1) & 2));
  const T sign_across = static_cast<T>(1 - (quarter & 2));
  first = radius * (along * sign_along);
  second = radius * (across * sign_across);
}

}  // namespace fastpure
