// GroupNorm + SiLU and its transpose, one unit at a time. Included by loops.inl, inside its namespace.
//
// A unit's channels are gone through in tiles of 32, 16 or (the rest) fewer neighbouring channels of one input: all
// pixels of a tile, then the next tile. Sums are float over 64 pixels and double beyond.

constexpr int64_t kSumPixels = 64;

// The values of one tensor at the channels of a tile: pixel p begins at base + p * stride.
template <typename T>
struct Plane {
  T* base;
  int64_t stride;
  T* at(int64_t pixel) const { return base + pixel * stride; }
};

template <typename T>
static Plane<T> plane(T* tensor, int64_t sample, int64_t pixels, int64_t channels, int64_t channel) {
  return {tensor + sample * pixels * channels + channel, channels};
}

// x or skip, whichever has the channel.
template <typename T>
static Plane<T> input_plane(const GroupNormShape& shape, T* x, T* skip, int64_t sample, int64_t channel) {
  return channel < shape.first ? plane(x, sample, shape.pixels(), shape.first, channel)
                               : plane(skip, sample, shape.pixels(), shape.second, channel - shape.first);
}

// One of the numbers per channel: [C] for all samples (stride 0) or [B, C] (stride C); null if absent.
static float channel_value(const void* values, int64_t stride, DType dtype, int64_t sample, int64_t channel,
                           float absent) {
  if (values == nullptr) return absent;
  const int64_t place = sample * stride + channel;
  return dtype == kFloat32 ? static_cast<const float*>(values)[place]
                           : widen(static_cast<const BFloat16*>(values)[place]);
}

struct Tile {
  int64_t sample, channel, width;
};

template <int kCount, bool kIsPart>
struct TileSize {
  static constexpr int kLanes = kCount;
  static constexpr int kVectors = kCount / FASTPURE_LANES;
  static constexpr bool kPart = kIsPart;
};

// Calls body(tile, size) for every tile of the channels [begin, end).
template <typename Body>
static void for_channels(const GroupNormShape& shape, int64_t sample, int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t left = (begin < shape.first && shape.first < end ? shape.first : end) - begin;
    const Tile tile = {sample, begin, left >= 32 ? 32 : smaller(left, 16)};
    if (tile.width == 32) {
      body(tile, TileSize<32, false>{});
    } else if (tile.width == 16) {
      body(tile, TileSize<16, false>{});
    } else {
      body(tile, TileSize<16, true>{});
    }
    begin += tile.width;
  }
}

// One number per channel of a tile.
struct ChannelNumbers {
  alignas(64) float of[kTileChannels];
};

template <int N>
FASTPURE_HD Pixel<N> as_pixel(const ChannelNumbers& numbers) {
  return load_pixel<N, false>(numbers.of, 0);
}

// What each channel of a tile is normalised with: xhat = (x - center) inverse, n = xhat weight + bias.
struct Affine {
  ChannelNumbers center, inverse, weight, bias;
};

template <typename Args>
static void fill_affine(const Args& args, const Tile& tile, const float* stats, Affine& affine) {
  const GroupNormShape shape = shape_of(args);
  const int64_t width = shape.channels() / shape.groups;
  int64_t group = tile.channel / width, next = (group + 1) * width;
  for (int64_t i = 0; i < kTileChannels; ++i) {
    const int64_t channel = tile.channel + smaller(i, tile.width - 1);
    if (channel == next) {
      ++group;
      next += width;
    }
    const float* of_group = stats + 2 * (tile.sample * shape.groups + group);
    const auto value = [&](const void* values, int64_t stride, float absent) {
      return channel_value(values, stride, shape.vectors, tile.sample, channel, absent);
    };
    affine.center.of[i] = of_group[0] - value(args.row, args.layout.row_stride, 0.0f);
    affine.inverse.of[i] = of_group[1];
    affine.weight.of[i] = value(args.weight, args.layout.weight_stride, 1.0f);
    affine.bias.of[i] = value(args.bias, args.layout.bias_stride, 0.0f);
  }
}

template <int N>
FASTPURE_HD void add_to(double* totals, const Pixel<N>& sums) {
  float parts[N * FASTPURE_LANES];
  std::memcpy(parts, &sums, sizeof parts);
  for (int i = 0; i < N * FASTPURE_LANES; ++i) totals[i] += static_cast<double>(parts[i]);
}

// Adds the sums over the channels of a tile to those of their groups, the first of which is `first_group`.
static void add_to_groups(const GroupNormShape& shape, const Tile& tile, const double* totals, int64_t first_group,
                          double* sums) {
  const int64_t width = shape.channels() / shape.groups;
  int64_t group = tile.channel / width, next = (group + 1) * width;
  for (int64_t i = 0; i < tile.width; ++i) {
    if (tile.channel + i == next) {
      ++group;
      next += width;
    }
    sums[group - first_group] += totals[i];
  }
}

template <typename T>
static void group_means(const GroupNormArgs& args, int64_t sample, int64_t first, int64_t last) {
  const GroupNormShape shape = shape_of(args);
  const int64_t width = shape.channels() / shape.groups, pixels = shape.pixels();
  const T *x = static_cast<const T*>(args.x), *skip = static_cast<const T*>(args.skip);
  double sums[kUnitGroups] = {};
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    constexpr int N = decltype(size)::kVectors;
    const Plane<const T> in = input_plane(shape, x, skip, sample, tile.channel);
    double totals[kTileChannels] = {};
    for (int64_t begin = 0; begin < pixels; begin += kSumPixels) {
      Pixel<N> sum = {};
      const int64_t end = smaller(begin + kSumPixels, pixels);
      for (int64_t p = begin; p < end; ++p) {
        const Pixel<N> h = load_pixel<N, decltype(size)::kPart>(in.at(p), tile.width);
        for (int i = 0; i < N; ++i) sum.lanes[i] += h.lanes[i];
      }
      add_to(totals, sum);
    }
    for (int64_t i = 0; i < tile.width; ++i) {
      const float row =
          channel_value(args.row, args.layout.row_stride, shape.vectors, sample, tile.channel + i, 0.0f);
      totals[i] += static_cast<double>(pixels) * static_cast<double>(row);
    }
    add_to_groups(shape, tile, totals, first, sums);
  });
  float* stats = args.stats + 2 * sample * shape.groups;
  for (int64_t g = first; g < last; ++g) {
    stats[2 * g] = static_cast<float>(sums[g - first] / static_cast<double>(width * pixels));
    stats[2 * g + 1] = 1.0f;
  }
}

template <typename T>
static void group_deviations(const GroupNormArgs& args, int64_t sample, int64_t first, int64_t last) {
  const GroupNormShape shape = shape_of(args);
  const int64_t width = shape.channels() / shape.groups, pixels = shape.pixels();
  const T *x = static_cast<const T*>(args.x), *skip = static_cast<const T*>(args.skip);
  double sums[kUnitGroups] = {};
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    constexpr int N = decltype(size)::kVectors;
    const Plane<const T> in = input_plane(shape, x, skip, sample, tile.channel);
    Affine affine;
    fill_affine(args, tile, args.stats, affine);
    const Pixel<N> center = as_pixel<N>(affine.center);
    double totals[kTileChannels] = {};
    for (int64_t begin = 0; begin < pixels; begin += kSumPixels) {
      Pixel<N> sum = {};
      const int64_t end = smaller(begin + kSumPixels, pixels);
      for (int64_t p = begin; p < end; ++p) {
        const Pixel<N> h = load_pixel<N, decltype(size)::kPart>(in.at(p), tile.width);
        for (int i = 0; i < N; ++i) {
          const Lanes d = h.lanes[i] - center.lanes[i];
          sum.lanes[i] += d * d;
        }
      }
      add_to(totals, sum);
    }
    add_to_groups(shape, tile, totals, first, sums);
  });
  float* stats = args.stats + 2 * sample * shape.groups;
  for (int64_t g = first; g < last; ++g) {
    const double variance = sums[g - first] / static_cast<double>(width * pixels);
    stats[2 * g + 1] = static_cast<float>(1.0 / __builtin_sqrt(variance + args.eps));
  }
}

// The activated values of one pixel. Everywhere below, `kCommon` loops are made for what networks do most (activation,
// no resampling) and the others decide pixel by pixel: compiling every combination would take minutes.
template <bool kCommon, int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> activated(const T* x, const Pixel<N> (&k)[4], bool activate, int64_t width) {
  Pixel<N> a = load_pixel<N, kPart>(x, width);
  for (int i = 0; i < N; ++i) {
    const Lanes n = ((a.lanes[i] - k[0].lanes[i]) * k[1].lanes[i]) * k[2].lanes[i] + k[3].lanes[i];
    a.lanes[i] = kCommon || activate ? silu(n) : n;
  }
  return a;
}

template <bool kCommon, int N, bool kPart, typename T>
static void write_tile(const GroupNormShape& shape, const Affine& affine, Plane<const T> in, Plane<T> out,
                       int64_t channels) {
  const Pixel<N> k[4] = {as_pixel<N>(affine.center), as_pixel<N>(affine.inverse), as_pixel<N>(affine.weight),
                         as_pixel<N>(affine.bias)};
  const int64_t pixels = shape.pixels(), columns = shape.width;
  const bool activate = kCommon || shape.activate;
  if (kCommon || shape.resample == kKeep) {
    for (int64_t p = 0; p < pixels; ++p) {
      store_pixel<N, kPart>(out.at(p), activated<kCommon, N, kPart>(in.at(p), k, activate, channels), channels);
    }
    return;
  }
  if (shape.resample == kDown) {
    const int64_t half = columns / 2;
    for (int64_t q = 0; q < pixels / 4; ++q) {
      const int64_t p = 2 * (q / half) * columns + 2 * (q % half);
      Pixel<N> sum = activated<kCommon, N, kPart>(in.at(p), k, activate, channels);
      const int64_t others[3] = {p + 1, p + columns, p + columns + 1};
      for (const int64_t corner : others) {
        const Pixel<N> a = activated<kCommon, N, kPart>(in.at(corner), k, activate, channels);
        for (int i = 0; i < N; ++i) sum.lanes[i] += a.lanes[i];
      }
      for (int i = 0; i < N; ++i) sum.lanes[i] *= 0.25f;
      store_pixel<N, kPart>(out.at(q), sum, channels);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const Pixel<N> a = activated<kCommon, N, kPart>(in.at(p), k, activate, channels);
    const int64_t q = 4 * (p / columns) * columns + 2 * (p % columns);
    const int64_t corners[4] = {q, q + 1, q + 2 * columns, q + 2 * columns + 1};
    for (const int64_t corner : corners) store_pixel<N, kPart>(out.at(corner), a, channels);
  }
}

// Pixels of the resampled image of a sample.
static int64_t resampled_pixels(const GroupNormShape& shape) {
  return shape.resample == kUp ? 4 * shape.pixels() : shape.resample == kDown ? shape.pixels() / 4 : shape.pixels();
}

template <typename T, bool kCommon>
static void group_norm_units(const GroupNormArgs& args, int64_t begin, int64_t end) {
  const GroupNormShape shape = shape_of(args);
  const int64_t each = groups_per_unit(shape), units = units_per_sample(shape);
  const int64_t width = shape.channels() / shape.groups;
  const int64_t written = resampled_pixels(shape);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / units, first = unit % units * each, last = smaller(first + each, shape.groups);
    group_means<T>(args, sample, first, last);
    group_deviations<T>(args, sample, first, last);
    for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
      Affine affine;
      fill_affine(args, tile, args.stats, affine);
      const Plane<const T> in = input_plane(shape, static_cast<const T*>(args.x), static_cast<const T*>(args.skip),
                                            sample, tile.channel);
      const Plane<T> out = plane(static_cast<T*>(args.y), sample, written, shape.channels(), tile.channel);
      write_tile<kCommon, decltype(size)::kVectors, decltype(size)::kPart>(shape, affine, in, out, tile.width);
    });
  }
}
