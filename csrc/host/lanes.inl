// Short vectors of channels for group_norm.inl, as wide as the registers of the instruction set it is compiled for.
//
// Every operation acts on each lane alone and is rounded correctly (nothing is contracted), so a channel's numbers
// have the same bits whatever the width. Included by loops.inl, inside its namespace.

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

// Rounds to nearest, ties to even; a NaN stays one.
FASTPURE_HD void store_lanes(BFloat16* to, Lanes lanes) {
  const LaneBits bits = (LaneBits)lanes;
  const LaneBits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const LaneBits kept = lanes == lanes ? rounded : (bits >> 16) | 0x40u;
  const LaneHalves halves = __builtin_convertvector(kept, LaneHalves);
  std::memcpy(to, &halves, sizeof halves);
}

FASTPURE_HD float widen(float value) { return value; }

FASTPURE_HD float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// exp(-|n|), held at exp(-86) below that. 2^t for the float nearest to t = -|n| log2(e), by t = k + f with |f| <= 1/2
// and a polynomial in f (minimax for the relative error, 1 at 0): relative error of 2^t at most 1.9e-7, of exp(-|n|)
// at most 1.9e-7 + 5e-8 |n|, less than the rounding of n itself does. For NaN anything may come out: the callers
// multiply with n.
FASTPURE_HD Lanes exp_of_negative(Lanes n) {
  const Lanes t = (Lanes)((LaneBits)n | 0x80000000u) * 1.44269504f;
  const Lanes lowest = broadcast(-124.0f);
  const Lanes inside = t < lowest ? lowest : t;
  const float magic = 12582912.0f;  // 1.5 * 2^23: a sum with it holds the nearest whole number in its low bits
  const Lanes shifted = inside + magic;
  const Lanes f = inside - (shifted - magic);
  Lanes p = f * 1.3264727e-3f + 9.671513e-3f;
  p = p * f + 5.5507336e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.93147e-1f;
  p = p * f + 1.0f;
  return (Lanes)((LaneBits)p + ((LaneBits)shifted << 23));
}

// n / (1 + exp(-n)); with z = exp(-|n|) that is n z / (1 + z) for negative n.
FASTPURE_HD Lanes silu(Lanes n) {
  const Lanes z = exp_of_negative(n);
  const Lanes quotient = n / (1.0f + z);
  return n < 0.0f ? quotient * z : quotient;
}

// d silu(n) / dn = s + n s (1 - s), where s = 1 / (1 + exp(-n)) is one of 1 / (1 + z), z / (1 + z), and 1 - s the other.
FASTPURE_HD Lanes silu_slope(Lanes n) {
  const Lanes z = exp_of_negative(n);
  const Lanes larger = 1.0f / (1.0f + z), smaller_one = z * larger;
  return (n < 0.0f ? smaller_one : larger) + n * (larger * smaller_one);
}

// The lanes of one pixel: N vectors; a `kPart` tile has fewer channels than lanes, and reads and writes no more.
template <int N>
struct Pixel {
  Lanes lanes[N];
};

template <int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> load_pixel(const T* from, int64_t width) {
  Pixel<N> pixel;
  if (kPart) {
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
  if (kPart) {
    T whole[N * FASTPURE_LANES];
    for (int i = 0; i < N; ++i) store_lanes(whole + i * FASTPURE_LANES, pixel.lanes[i]);
    std::memcpy(to, whole, static_cast<size_t>(width) * sizeof(T));
  } else {
    for (int i = 0; i < N; ++i) store_lanes(to + i * FASTPURE_LANES, pixel.lanes[i]);
  }
}
