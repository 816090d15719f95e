// GroupNorm + SiLU, one unit at a time. Included by loops.inl, inside its namespace.
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

struct Tile {
  int64_t sample, channel, width;
};

template <int kCount, bool kIsPart>
struct TileSize {
  static constexpr int kLanes = kCount;
  static constexpr int kVectors = kCount / FASTPURE_LANES;
  static constexpr bool kPart = kIsPart;
};

// Calls body(channel, width, size) for stretches of 32, 16 or (the rest) fewer of the channels [begin, end).
template <typename Body>
static void for_spans(int64_t begin, int64_t end, const Body& body) {
  while (begin < end) {
    const int64_t left = end - begin, width = left >= 32 ? 32 : smaller(left, 16);
    if (width == 32) {
      body(begin, width, TileSize<32, false>{});
    } else if (width == 16) {
      body(begin, width, TileSize<16, false>{});
    } else {
      body(begin, width, TileSize<16, true>{});
    }
    begin += width;
  }
}

// Calls body(tile, size) for every tile of the channels [begin, end); a tile lies in x or in skip.
template <typename Body>
static void for_channels(const GroupNormShape& shape, int64_t sample, int64_t begin, int64_t end, const Body& body) {
  const auto of_span = [&](int64_t channel, int64_t width, auto size) { body(Tile{sample, channel, width}, size); };
  const int64_t border = begin < shape.first && shape.first < end ? shape.first : end;
  for_spans(begin, border, of_span);
  for_spans(border, end, of_span);
}

// One number per channel of a tile.
struct ChannelNumbers {
  alignas(64) float of[kTileChannels];
};

// Those of [C] for all samples (stride 0) or [B, C] (stride C) at the channels of a tile; `absent` where there are none.
static void channel_numbers(const void* values, int64_t stride, DType dtype, const Tile& tile, float absent,
                            ChannelNumbers& numbers) {
  int64_t known = 0;
  if (values != nullptr) {
    known = tile.width;
    const int64_t place = tile.sample * stride + tile.channel;
    if (dtype == kFloat32) {
      std::memcpy(numbers.of, static_cast<const float*>(values) + place, static_cast<size_t>(known) * sizeof(float));
    } else {
      const BFloat16* halves = static_cast<const BFloat16*>(values) + place;
      for (int64_t i = 0; i < known; ++i) numbers.of[i] = widen(halves[i]);
    }
  }
  for (int64_t i = known; i < kTileChannels; ++i) numbers.of[i] = absent;
}

// The row is added to the channels of x alone.
template <typename Args>
static void row_numbers(const Args& args, const Tile& tile, ChannelNumbers& numbers) {
  const GroupNormLayout& l = args.layout;
  channel_numbers(tile.channel < l.first ? args.row : nullptr, l.row_stride, l.vectors, tile, 0.0f, numbers);
}

// Calls body(group, begin, end) for the lanes of a tile that belong to each of its groups.
template <typename Body>
static void for_groups(const GroupNormShape& shape, const Tile& tile, const Body& body) {
  const int64_t width = shape.channels() / shape.groups;
  for (int64_t begin = 0; begin < tile.width;) {
    const int64_t group = (tile.channel + begin) / width;
    const int64_t end = smaller((group + 1) * width - tile.channel, tile.width);
    body(group, begin, end);
    begin = end;
  }
}

// What each channel of a tile is normalised with: xhat = (x - center) inverse, n = xhat weight + bias.
struct Affine {
  ChannelNumbers center, inverse, weight, bias;
};

template <typename Args>
static void fill_affine(const Args& args, const Tile& tile, const float* stats, Affine& affine) {
  const GroupNormShape shape = shape_of(args);
  const GroupNormLayout& l = args.layout;
  channel_numbers(args.weight, l.weight_stride, l.vectors, tile, 1.0f, affine.weight);
  channel_numbers(args.bias, l.bias_stride, l.vectors, tile, 0.0f, affine.bias);
  row_numbers(args, tile, affine.center);
  for (int64_t i = tile.width; i < kTileChannels; ++i) affine.inverse.of[i] = 0.0f;
  for_groups(shape, tile, [&](int64_t group, int64_t begin, int64_t end) {
    const float* of_group = stats + 2 * (tile.sample * shape.groups + group);
    for (int64_t i = begin; i < end; ++i) {
      affine.center.of[i] = of_group[0] - affine.center.of[i];
      affine.inverse.of[i] = of_group[1];
    }
  });
}

template <int N, bool kPart, typename T>
FASTPURE_HD void add_to(double* totals, const Pixel<N>& sums) {
  float parts[N * FASTPURE_LANES];
  std::memcpy(parts, &sums, sizeof parts);
  for (int i = 0; i < N * FASTPURE_LANES; ++i) {
    totals[channel_of_lane<N, kPart, T>(i)] += static_cast<double>(parts[i]);
  }
}

// Adds the sums over the channels of a tile to those of their groups, the first of which is `first_group`.
static void add_to_groups(const GroupNormShape& shape, const Tile& tile, const double* totals, int64_t first_group,
                          double* sums) {
  for_groups(shape, tile, [&](int64_t group, int64_t begin, int64_t end) {
    double sum = sums[group - first_group];
    for (int64_t i = begin; i < end; ++i) sum += totals[i];
    sums[group - first_group] = sum;
  });
}

// total = (x + plus + row) scale at the channels of a tile, rounded to what it is kept in.
template <int N, bool kPart, typename T>
static void add_up(const GroupNormArgs& args, const Tile& tile) {
  const GroupNormShape shape = shape_of(args);
  const auto at = [&](auto* tensor) { return plane(tensor, tile.sample, shape.pixels(), shape.first, tile.channel); };
  const Plane<const T> x = at(static_cast<const T*>(args.x)), plus = at(static_cast<const T*>(args.plus));
  const Plane<T> total = at(static_cast<T*>(args.total));
  ChannelNumbers numbers;
  row_numbers(args, tile, numbers);
  const Pixel<N> row = as_pixel<N, kPart, T>(numbers.of);
  const float scale = static_cast<float>(args.scale);
  for (int64_t p = 0; p < shape.pixels(); ++p) {
    Pixel<N> a = load_pixel<N, kPart>(x.at(p), tile.width);
    const Pixel<N> b = load_pixel<N, kPart>(plus.at(p), tile.width);
    for (int i = 0; i < N; ++i) a.lanes[i] = ((a.lanes[i] + b.lanes[i]) + row.lanes[i]) * scale;
    store_pixel<N, kPart>(total.at(p), a, tile.width);
  }
}

// Statistics are taken around a pivot near the mean, so that one pass gives both without cancellation: the mean of some
// pixels from the middle, where no border makes them unlike the others. Small images have no others.
template <typename T>
static void group_pivots(const GroupNormArgs& args, int64_t sample, int64_t first, int64_t last, double* pivots) {
  const GroupNormShape shape = shape_of(args);
  const int64_t width = shape.channels() / shape.groups, pixels = smaller(kSumPixels, shape.pixels());
  const int64_t begin = (shape.pixels() - pixels) / 2;
  const T *x = static_cast<const T*>(args.x), *skip = static_cast<const T*>(args.skip);
  for (int64_t g = first; g < last; ++g) pivots[g - first] = 0;
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    constexpr int N = decltype(size)::kVectors;
    constexpr bool kPart = decltype(size)::kPart;
    const Plane<const T> in = input_plane(shape, x, skip, sample, tile.channel);
    Pixel<N> sum = {};
    for (int64_t p = 0; p < pixels; ++p) {
      const Pixel<N> h = load_pixel<N, kPart>(in.at(begin + p), tile.width);
      for (int i = 0; i < N; ++i) sum.lanes[i] += h.lanes[i];
    }
    double totals[kTileChannels] = {};
    add_to<N, kPart, T>(totals, sum);
    ChannelNumbers row;
    row_numbers(args, tile, row);
    for (int64_t i = 0; i < tile.width; ++i) {
      totals[i] += static_cast<double>(pixels) * static_cast<double>(row.of[i]);
    }
    add_to_groups(shape, tile, totals, first, pivots);
  });
  for (int64_t g = first; g < last; ++g) {
    pivots[g - first] = static_cast<double>(static_cast<float>(pivots[g - first] / static_cast<double>(width * pixels)));
  }
}

// A number like `wanted` from which values of T are subtracted without error that they share: what is cut off a sum of
// bfloat16 and a float is the same for most of them, and would add up.
template <typename T>
FASTPURE_HD float pivot_of(float wanted) {
  if constexpr (sizeof(T) == 4) {
    return wanted;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &wanted, sizeof bits);
    return widen(BFloat16{static_cast<uint16_t>(bits >> 16)});
  }
}

template <typename T>
static void group_statistics(const GroupNormArgs& args, int64_t sample, int64_t first, int64_t last) {
  const GroupNormShape shape = shape_of(args);
  const int64_t width = shape.channels() / shape.groups, pixels = shape.pixels();
  const T *x = static_cast<const T*>(args.x), *skip = static_cast<const T*>(args.skip);
  double pivots[kUnitGroups], sums[kUnitGroups] = {}, squares[kUnitGroups] = {};
  group_pivots<T>(args, sample, first, last, pivots);
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    constexpr int N = decltype(size)::kVectors;
    constexpr bool kPart = decltype(size)::kPart;
    const Plane<const T> in = input_plane(shape, x, skip, sample, tile.channel);
    ChannelNumbers numbers;
    row_numbers(args, tile, numbers);
    double moved[kTileChannels];  // from the group's pivot to the channel's
    for_groups(shape, tile, [&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float row = numbers.of[i];
        numbers.of[i] = pivot_of<T>(static_cast<float>(pivots[group - first]) - row);
        moved[i] = static_cast<double>(numbers.of[i]) + static_cast<double>(row) - pivots[group - first];
      }
    });
    const Pixel<N> pivot = as_pixel<N, kPart, T>(numbers.of);
    double of_d[kTileChannels] = {}, of_d2[kTileChannels] = {};
    for (int64_t begin = 0; begin < pixels; begin += kSumPixels) {
      Pixel<N> sum = {}, square = {};
      const int64_t end = smaller(begin + kSumPixels, pixels);
      for (int64_t p = begin; p < end; ++p) {
        const Pixel<N> h = load_pixel<N, kPart>(in.at(p), tile.width);
        for (int i = 0; i < N; ++i) {
          const Lanes d = h.lanes[i] - pivot.lanes[i];
          sum.lanes[i] += d;
          square.lanes[i] = multiply_add(d, d, square.lanes[i]);
        }
      }
      add_to<N, kPart, T>(of_d, sum);
      add_to<N, kPart, T>(of_d2, square);
    }
    for (int64_t i = 0; i < tile.width; ++i) {
      of_d2[i] += moved[i] * (2.0 * of_d[i] + static_cast<double>(pixels) * moved[i]);
      of_d[i] += static_cast<double>(pixels) * moved[i];
    }
    add_to_groups(shape, tile, of_d, first, sums);
    add_to_groups(shape, tile, of_d2, first, squares);
  });
  float* stats = args.stats + 2 * sample * shape.groups;
  const double count = static_cast<double>(width * pixels);
  for (int64_t g = first; g < last; ++g) {
    const double off = sums[g - first] / count, variance = squares[g - first] / count - off * off;
    stats[2 * g] = static_cast<float>(pivots[g - first] + off);
    // Rounding may leave a constant image a little below zero.
    stats[2 * g + 1] = static_cast<float>(1.0 / __builtin_sqrt((variance > 0.0 ? variance : 0.0) + args.eps));
  }
}

// What a pixel of a tile is activated with: the numbers of its channels.
template <int N, bool kPart, typename T>
struct Normaliser {
  Pixel<N> center, inverse, weight, bias;
  explicit Normaliser(const Affine& affine)
      : center(as_pixel<N, kPart, T>(affine.center.of)),
        inverse(as_pixel<N, kPart, T>(affine.inverse.of)),
        weight(as_pixel<N, kPart, T>(affine.weight.of)),
        bias(as_pixel<N, kPart, T>(affine.bias.of)) {}
};

// The activated values of one pixel. Everywhere below, `kCommon` loops are made for what networks do most (activation,
// no resampling) and the others decide pixel by pixel: compiling every combination would take minutes.
template <bool kCommon, int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> activated(const T* x, const Normaliser<N, kPart, T>& by, const Pixel<N>& gain, bool activate,
                               int64_t width) {
  Pixel<N> a = load_pixel<N, kPart>(x, width);
  for (int i = 0; i < N; ++i) {
    const Lanes n = multiply_add(a.lanes[i] - by.center.lanes[i], gain.lanes[i], by.bias.lanes[i]);
    a.lanes[i] = kCommon || activate ? silu(n) : n;
  }
  return a;
}

template <bool kCommon, int N, bool kPart, typename T>
static void write_tile(const GroupNormShape& shape, const Affine& affine, Plane<const T> in, Plane<T> out,
                       int64_t channels) {
  const Normaliser<N, kPart, T> by(affine);
  Pixel<N> gain;
  for (int i = 0; i < N; ++i) gain.lanes[i] = by.inverse.lanes[i] * by.weight.lanes[i];
  const int64_t pixels = shape.pixels(), columns = shape.width;
  const bool activate = kCommon || shape.activate;
  if (kCommon || shape.resample == kKeep) {
    for (int64_t p = 0; p < pixels; ++p) {
      store_pixel<N, kPart>(out.at(p), activated<kCommon>(in.at(p), by, gain, activate, channels), channels);
    }
    return;
  }
  if (shape.resample == kDown) {
    const int64_t half = columns / 2;
    for (int64_t q = 0; q < pixels / 4; ++q) {
      const int64_t p = 2 * (q / half) * columns + 2 * (q % half);
      Pixel<N> sum = activated<kCommon>(in.at(p), by, gain, activate, channels);
      const int64_t others[3] = {p + 1, p + columns, p + columns + 1};
      for (const int64_t corner : others) {
        const Pixel<N> a = activated<kCommon>(in.at(corner), by, gain, activate, channels);
        for (int i = 0; i < N; ++i) sum.lanes[i] += a.lanes[i];
      }
      for (int i = 0; i < N; ++i) sum.lanes[i] *= 0.25f;
      store_pixel<N, kPart>(out.at(q), sum, channels);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const Pixel<N> a = activated<kCommon>(in.at(p), by, gain, activate, channels);
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
static void group_norm_units(const GroupNormArgs& all, int64_t begin, int64_t end) {
  const GroupNormShape shape = shape_of(all);
  const int64_t each = groups_per_unit(shape), units = units_per_sample(shape);
  const int64_t width = shape.channels() / shape.groups;
  const int64_t written = resampled_pixels(shape);
  GroupNormArgs args = all;
  if (all.plus != nullptr) {  // from then on the sum is the input
    args.x = all.total;
    args.row = nullptr;
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / units, first = unit % units * each, last = smaller(first + each, shape.groups);
    if (all.plus != nullptr) {
      for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
        if (tile.channel < shape.first) add_up<decltype(size)::kVectors, decltype(size)::kPart, T>(all, tile);
      });
    }
    group_statistics<T>(args, sample, first, last);
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
