// Short vectors of channels for the files behind it, as wide as the registers of the instruction set it is compiled for.
//
// Every operation acts on each lane alone and is rounded correctly, so a channel's numbers have the same bits whatever
// the width, on all instruction sets that multiply and add in one; on the baseline they differ by roundings. Included by loops.inl, inside its namespace.

typedef float Lanes __attribute__((vector_size(4 * FASTPURE_LANES)));
typedef int32_t LaneInts __attribute__((vector_size(4 * FASTPURE_LANES)));
typedef uint32_t LaneBits __attribute__((vector_size(4 * FASTPURE_LANES)));
typedef uint16_t LaneHalves __attribute__((vector_size(2 * FASTPURE_LANES)));

// A bfloat16 is the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

FASTPURE_HD Lanes broadcast(float value) { return value - Lanes{}; }

FASTPURE_HD Lanes load_lanes(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

FASTPURE_HD Lanes load_lanes(const BFloat16* from) {
  LaneHalves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Lanes)(__builtin_convertvector(halves, LaneBits) << 16);
}

FASTPURE_HD void store_lanes(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// Rounded to nearest, ties to even, in the upper halves (the lower ones hold whatever is left); a NaN stays one.
FASTPURE_HD LaneBits rounded_to_half(Lanes lanes) {
  const LaneBits bits = (LaneBits)lanes;
  const LaneBits rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return lanes == lanes ? rounded : bits | 0x400000u;
}

FASTPURE_HD void store_lanes(BFloat16* to, Lanes lanes) {
  const LaneHalves halves = __builtin_convertvector(rounded_to_half(lanes) >> 16, LaneHalves);
  std::memcpy(to, &halves, sizeof halves);
}

FASTPURE_HD float widen(float value) { return value; }

FASTPURE_HD float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// The larger and the smaller of a bound and a number; the number where it is NaN, as x86's instructions have it.
#if defined(__x86_64__) && FASTPURE_LANES == 16
FASTPURE_HD Lanes at_least(Lanes bound, Lanes n) { return (Lanes)_mm512_maskz_max_ps(0xFFFF, (__m512)bound, (__m512)n); }
FASTPURE_HD Lanes at_most(Lanes bound, Lanes n) { return (Lanes)_mm512_maskz_min_ps(0xFFFF, (__m512)bound, (__m512)n); }
#elif defined(__x86_64__) && FASTPURE_LANES == 8
FASTPURE_HD Lanes at_least(Lanes bound, Lanes n) { return (Lanes)_mm256_max_ps((__m256)bound, (__m256)n); }
FASTPURE_HD Lanes at_most(Lanes bound, Lanes n) { return (Lanes)_mm256_min_ps((__m256)bound, (__m256)n); }
#elif defined(__x86_64__)
FASTPURE_HD Lanes at_least(Lanes bound, Lanes n) { return (Lanes)_mm_max_ps((__m128)bound, (__m128)n); }
FASTPURE_HD Lanes at_most(Lanes bound, Lanes n) { return (Lanes)_mm_min_ps((__m128)bound, (__m128)n); }
#else
FASTPURE_HD Lanes at_least(Lanes bound, Lanes n) { return bound > n ? bound : n; }
FASTPURE_HD Lanes at_most(Lanes bound, Lanes n) { return bound < n ? bound : n; }
#endif

// a b + sum, rounded once where the instruction set does that: all of them but the baseline.
FASTPURE_HD Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
#if defined(__x86_64__) && FASTPURE_LANES == 16
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__x86_64__) && FASTPURE_LANES == 8
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return a * b + sum;
#endif
}

FASTPURE_HD Lanes multiply_add(Lanes a, Lanes b, float sum) { return multiply_add(a, b, broadcast(sum)); }

// Numbers from -88.3 to 87.3, between which exp(-n) is an ordinary float; what lies outside becomes the nearer of them,
// except NaN.
FASTPURE_HD Lanes not_below(Lanes n) { return at_least(broadcast(-88.3f), n); }
FASTPURE_HD Lanes not_above(Lanes n) { return at_most(broadcast(87.3f), n); }

// exp(-n) for n between these bounds: 2^k e^r by -n = k ln 2 + r with |r| <= ln 2 / 2. ln 2 is split in two, so that what
// is left of n stays exact where k is large, and the polynomial (minimax for the relative error, p(0) = p'(0) = 1) is
// off by 3e-9: the error, 1 unit in the last place, is that of the roundings.
FASTPURE_HD Lanes exp_of_minus(Lanes n) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: a sum with it holds the nearest whole number in its low bits
  const Lanes shifted = multiply_add(n, broadcast(-1.44269504f), magic);
  const Lanes k = shifted - magic;
  const Lanes r = multiply_add(k, broadcast(2.12194440e-4f), multiply_add(k, broadcast(-0.693359375f), -n));
  Lanes p = multiply_add(r, broadcast(1.3814541e-3f), 8.3687454e-3f);
  p = multiply_add(p, r, 4.1668389e-2f);
  p = multiply_add(p, r, 1.6666521e-1f);
  p = multiply_add(p, r, 4.9999994e-1f);
  p = multiply_add(p, r, 1.0f);
  p = multiply_add(p, r, 1.0f);
  return (Lanes)((LaneBits)p + ((LaneBits)shifted << 23));
}

// n / (1 + exp(-n)); what is below -88.3 is taken for it, as the result vanishes there and the quotient would not.
FASTPURE_HD Lanes silu(Lanes n) {
  const Lanes m = not_below(n);
  return m / (1.0f + exp_of_minus(not_above(m)));
}

// d silu(n) / dn = s + n s (1 - s) = s (1 + n (1 - s)), where s = 1 / (1 + exp(-n)) and 1 - s = exp(-n) s.
FASTPURE_HD Lanes silu_slope(Lanes n) {
  const Lanes m = not_above(not_below(n)), z = exp_of_minus(m), s = 1.0f / (1.0f + z);
  return s * multiply_add(m, z * s, 1.0f);
}

// The lanes of one pixel: N vectors; a `kPart` tile has fewer channels than lanes, and reads and writes no more.
//
// Whole bfloat16 tiles of two or more vectors are taken apart in pairs, which saves half of the conversions: what lies
// at even places becomes one vector, what lies at odd places the next one. Whatever meets such lanes is ordered alike,
// by `channel_of_lane`.
template <int N>
struct Pixel {
  Lanes lanes[N];
};

template <int N, bool kPart, typename T>
constexpr bool is_paired() {
  return sizeof(T) == 2 && N % 2 == 0 && !kPart;
}

template <int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> load_pixel(const T* from, int64_t width) {
  Pixel<N> pixel;
  if constexpr (is_paired<N, kPart, T>()) {
    for (int i = 0; i < N; i += 2) {
      LaneBits pair;
      std::memcpy(&pair, from + i * FASTPURE_LANES, sizeof pair);
      pixel.lanes[i] = (Lanes)(pair << 16);
      pixel.lanes[i + 1] = (Lanes)(pair & 0xFFFF0000u);
    }
  } else if constexpr (kPart) {
    T whole[N * FASTPURE_LANES] = {};
    std::memcpy(whole, from, static_cast<size_t>(width) * sizeof(T));
    for (int i = 0; i < N; ++i) pixel.lanes[i] = load_lanes(whole + i * FASTPURE_LANES);
  } else {
    for (int i = 0; i < N; ++i) pixel.lanes[i] = load_lanes(from + i * FASTPURE_LANES);
  }
  return pixel;
}

template <int N, bool kPart, typename T>
FASTPURE_HD void store_pixel(T* to, const Pixel<N>& pixel, int64_t width) {
  if constexpr (is_paired<N, kPart, T>()) {
    for (int i = 0; i < N; i += 2) {
      const LaneBits pair = rounded_to_half(pixel.lanes[i]) >> 16 | (rounded_to_half(pixel.lanes[i + 1]) & 0xFFFF0000u);
      std::memcpy(to + i * FASTPURE_LANES, &pair, sizeof pair);
    }
  } else if constexpr (kPart) {
    T whole[N * FASTPURE_LANES];
    for (int i = 0; i < N; ++i) store_lanes(whole + i * FASTPURE_LANES, pixel.lanes[i]);
    std::memcpy(to, whole, static_cast<size_t>(width) * sizeof(T));
  } else {
    for (int i = 0; i < N; ++i) store_lanes(to + i * FASTPURE_LANES, pixel.lanes[i]);
  }
}

// Where lane `lane` of a pixel of T is among the channels of its tile.
template <int N, bool kPart, typename T>
FASTPURE_HD int channel_of_lane(int lane) {
  if constexpr (!is_paired<N, kPart, T>()) return lane;
  const int two = 2 * FASTPURE_LANES, place = lane % two;
  return lane - place + (place < FASTPURE_LANES ? 2 * place : 2 * (place - FASTPURE_LANES) + 1);
}

// One number per channel, ordered as the lanes of a pixel of T.
template <int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> as_pixel(const float* numbers) {
  Pixel<N> pixel;
  for (int i = 0; i < N; ++i) {
    alignas(64) float lanes[FASTPURE_LANES];
    for (int j = 0; j < FASTPURE_LANES; ++j) lanes[j] = numbers[channel_of_lane<N, kPart, T>(i * FASTPURE_LANES + j)];
    pixel.lanes[i] = load_lanes(lanes);
  }
  return pixel;
}
