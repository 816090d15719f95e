// Convolutions of one sample, 3x3 with a border of zeros or 1x1, and products of matrices. Included by loops.inl,
// inside its namespace, behind pointwise.inl.
//
// Sums agree between instruction sets to rounding only. They do not depend on threads, batches or what lies beside a
// pixel.

// One 32-bit unit of an input: a float, or two neighbouring bfloat16 channels. It may alias what has been stored as
// these: the compiler must not read it before.
typedef uint32_t __attribute__((may_alias)) Unit;

template <typename T>
constexpr int64_t kPerUnit = 4 / static_cast<int64_t>(sizeof(T));

// Channels as they lie in what is convolved: whole units.
template <typename T>
FASTPURE_HD int64_t padded_channels(int64_t channels) {
  return (channels + kPerUnit<T> - 1) / kPerUnit<T> * kPerUnit<T>;
}

// Outputs that are packed together.
FASTPURE_HD int64_t block_of(int64_t outputs) { return outputs % 32 == 0 ? 32 : 16; }

// sum + what one unit of the input contributes; `a` holds it in every lane, `b` the weights of the outputs.
template <typename T>
FASTPURE_HD Lanes contribute(LaneBits a, LaneBits b, Lanes sum) {
  if constexpr (sizeof(T) == 4) {
    return multiply_add((Lanes)a, (Lanes)b, sum);
  } else {
#if defined(FASTPURE_BF16_PRODUCTS)
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const Lanes odd = multiply_add((Lanes)(a & 0xFFFF0000u), (Lanes)(b & 0xFFFF0000u), sum);
    return multiply_add((Lanes)(a << 16), (Lanes)(b << 16), odd);
#endif
  }
}

constexpr int kPixels = FASTPURE_LANES == 16 ? 8 : FASTPURE_LANES == 8 ? 6 : 4;  // as many sums as registers hold
constexpr int kMostTaps = 9;

template <int V>
struct Sums {
  Lanes of[kPixels][V];
};

// Where the inputs of a convolution are, seen from the first of a pixel; units.
struct Window {
  int64_t taps;
  int64_t offset[kMostTaps];
  int64_t units;   // per tap
  int64_t stride;  // of the weights, from one unit of the input to the next: outputs that lie side by side
};

template <typename T, int V>
static Sums<V> sum_up(const Unit* const* pixels, const Window& window, const Unit* weights) {
  Sums<V> sums = {};
  for (int64_t tap = 0; tap < window.taps; ++tap) {
    const Unit* at[kPixels];
    for (int p = 0; p < kPixels; ++p) at[p] = pixels[p] + window.offset[tap];
    for (int64_t unit = 0; unit < window.units; ++unit) {
      LaneBits w[V];
      for (int v = 0; v < V; ++v) std::memcpy(&w[v], weights + v * FASTPURE_LANES, sizeof w[v]);
      weights += window.stride;
      for (int p = 0; p < kPixels; ++p) {
        const LaneBits a = at[p][unit] - LaneBits{};
        for (int v = 0; v < V; ++v) sums.of[p][v] = contribute<T>(a, w[v], sums.of[p][v]);
      }
    }
  }
  return sums;
}

// ((residual + sum) + row) scale, for the outputs of every pixel; residual and row may be null.
template <typename T>
struct Finish {
  T* out;
  int64_t stride;  // of out and residual, from pixel to pixel
  const T* residual;
  const float* row;
  float scale;
};

template <typename T, int V>
static void finish(const Sums<V>& sums, const Finish<T>& to, int64_t pixel, int64_t count, int64_t output,
                   int64_t width) {
  for (int64_t p = 0; p < count; ++p) {
    const int64_t place = (pixel + p) * to.stride + output;
    for (int64_t v = 0; v < V && v * FASTPURE_LANES < width; ++v) {
      const int64_t first = v * FASTPURE_LANES, left = smaller(width - first, FASTPURE_LANES);
      const bool whole = left == FASTPURE_LANES;
      const auto load = [&](const auto* from) {
        return whole ? load_lanes(from) : load_pixel<1, true>(from, left).lanes[0];
      };
      Lanes sum = sums.of[p][v];
      if (to.residual != nullptr) sum = load(to.residual + place + first) + sum;
      if (to.row != nullptr) sum = sum + load(to.row + output + first);
      sum *= to.scale;
      if (whole) {
        store_lanes(to.out + place + first, sum);
      } else {
        store_pixel<1, true>(to.out + place + first, Pixel<1>{{sum}}, left);
      }
    }
  }
}

// Rows of `columns` pixels, `length` pixels of input apart; `channels` per pixel of input, whole units.
template <typename T>
struct Source {
  const T* in;
  int64_t rows, columns, length, channels;
};

// All outputs of all pixels. `block` outputs are packed together, `of_block` weights (units) per block.
template <typename T, int V>
static void convolve_by(const Source<T>& from, const Window& window, const Unit* weights, int64_t block,
                        int64_t of_block, int64_t outputs, const Finish<T>& to) {
  const auto* in = reinterpret_cast<const Unit*>(from.in);
  const int64_t units = from.channels / kPerUnit<T>, pixels = from.rows * from.columns;
  const int64_t step = V * FASTPURE_LANES;
  for (int64_t pixel = 0; pixel < pixels; pixel += kPixels) {
    const Unit* at[kPixels];
    const int64_t count = smaller(kPixels, pixels - pixel);
    for (int64_t p = 0; p < kPixels; ++p) {
      const int64_t q = pixel + smaller(p, count - 1);  // beyond the last one it is computed again, and dropped
      at[p] = in + (q / from.columns * from.length + q % from.columns) * units;
    }
    for (int64_t output = 0; output < outputs; output += step) {
      const Unit* w = weights + output / block * of_block + output % block;
      finish<T, V>(sum_up<T, V>(at, window, w), to, pixel, count, output, smaller(step, outputs - output));
    }
  }
}

template <typename T>
static void convolve_packed(const Source<T>& from, const Window& window, const void* weights, int64_t outputs,
                            const Finish<T>& to) {
  const auto* w = static_cast<const Unit*>(weights);
  const int64_t block = window.stride, of_block = window.taps * window.units * block;
  if (block >= 2 * FASTPURE_LANES) {
    convolve_by<T, 2>(from, window, w, block, of_block, outputs, to);
  } else {
    convolve_by<T, 1>(from, window, w, block, of_block, outputs, to);
  }
}

// 3x3; `padded` [H + 2, W + 2, channels] with zeros around.
template <typename T>
static void convolve(const T* padded, int64_t height, int64_t width, int64_t channels, const void* weights,
                     int64_t outputs, const Finish<T>& to) {
  Window window = {9, {}, channels / kPerUnit<T>, block_of(outputs)};
  for (int64_t tap = 0; tap < 9; ++tap) window.offset[tap] = (tap / 3 * (width + 2) + tap % 3) * window.units;
  convolve_packed<T>({padded, height, width, width + 2, channels}, window, weights, outputs, to);
}

// 1x1, or a matrix [pixels, channels] times a packed one.
template <typename T>
static void map_pixels(const T* in, int64_t pixels, int64_t channels, const void* weights, int64_t outputs,
                       const Finish<T>& to) {
  const Window window = {1, {0}, channels / kPerUnit<T>, block_of(outputs)};
  convolve_packed<T>({in, 1, pixels, pixels, channels}, window, weights, outputs, to);
}

// out [rows, outputs] = scale a [rows, inner] b [inner, outputs]; rows `a_stride`, `b_stride` and `out_stride` apart,
// outputs a multiple of 16.
static void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows, int64_t inner,
                     int64_t outputs, float scale, float* out, int64_t out_stride) {
  const Window window = {1, {0}, inner, b_stride};
  const auto* weights = reinterpret_cast<const Unit*>(b);
  const Finish<float> to = {out, out_stride, nullptr, nullptr, scale};
  const Source<float> from = {a, rows, 1, 1, a_stride};
  if (FASTPURE_LANES == 16 && outputs % 32 != 0) {
    convolve_by<float, 1>(from, window, weights, outputs, 0, outputs, to);
  } else {
    convolve_by<float, 2>(from, window, weights, outputs, 0, outputs, to);
  }
}

// [H, W, channels] into the middle of [H + 2, W + 2, whole units of channels], zeros elsewhere.
template <typename T>
static void pad(const T* in, int64_t height, int64_t width, int64_t channels, T* padded) {
  const int64_t units = padded_channels<T>(channels), length = (width + 2) * units;
  std::memset(padded, 0, static_cast<size_t>(length) * sizeof(T));
  for (int64_t row = 0; row < height; ++row) {
    T* to = padded + (row + 1) * length;
    std::memset(to, 0, static_cast<size_t>(units) * sizeof(T));
    const T* from = in + row * width * channels;
    if (units == channels) {
      std::memcpy(to + units, from, static_cast<size_t>(width * channels) * sizeof(T));
    } else {
      std::memset(to + units, 0, static_cast<size_t>(width * units) * sizeof(T));
      for (int64_t column = 0; column < width; ++column) {
        for (int64_t c = 0; c < channels; ++c) to[(column + 1) * units + c] = from[column * channels + c];
      }
    }
    std::memset(to + (width + 1) * units, 0, static_cast<size_t>(units) * sizeof(T));
  }
  std::memset(padded + (height + 1) * length, 0, static_cast<size_t>(length) * sizeof(T));
}
