// The transpose of GroupNorm + SiLU. Included by loops.inl, inside its namespace, behind group_norm.inl.

// Sums over a group's channels and pixels of g and of g xhat; g is the cotangent of xhat.
struct GroupSums {
  double g[kUnitGroups], gx[kUnitGroups];
};

// The transposed resampling: the cotangent of pixel p of the activated tensor.
template <int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> cotangent(const Plane<const T>& v, int64_t p, Resample kind, int64_t columns, int64_t width) {
  if (kind == kKeep) return load_pixel<N, kPart>(v.at(p), width);
  const int64_t row = p / columns, column = p % columns;
  if (kind == kDown) {
    Pixel<N> quarter = load_pixel<N, kPart>(v.at(row / 2 * (columns / 2) + column / 2), width);
    for (int i = 0; i < N; ++i) quarter.lanes[i] *= 0.25f;
    return quarter;
  }
  const int64_t q = 4 * row * columns + 2 * column;
  Pixel<N> sum = load_pixel<N, kPart>(v.at(q), width);
  const int64_t others[3] = {q + 1, q + 2 * columns, q + 2 * columns + 1};
  for (const int64_t corner : others) {
    const Pixel<N> one = load_pixel<N, kPart>(v.at(corner), width);
    for (int i = 0; i < N; ++i) sum.lanes[i] += one.lanes[i];
  }
  return sum;
}

// What one tile reads, and what its channels are normalised with.
template <typename T, int N, bool kPart>
struct VjpTileInput {
  Plane<const T> x, v;
  Normaliser<N, kPart, T> by;
  Resample kind;
  bool activate;
  int64_t columns, width;
};

// A unit's g is kept from the first pass over it to the second where it fits in here; it is computed twice if not.
constexpr int64_t kKept = 32 * 1024;

template <int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> normalised(const VjpTileInput<T, N, kPart>& in, int64_t p) {
  Pixel<N> xhat = load_pixel<N, kPart>(in.x.at(p), in.width);
  for (int i = 0; i < N; ++i) xhat.lanes[i] = (xhat.lanes[i] - in.by.center.lanes[i]) * in.by.inverse.lanes[i];
  return xhat;
}

template <bool kCommon, int N, bool kPart, typename T>
FASTPURE_HD Pixel<N> cotangent_of(const Pixel<N>& xhat, const VjpTileInput<T, N, kPart>& in, int64_t p) {
  Pixel<N> g = cotangent<N, kPart>(in.v, p, kCommon ? kKeep : in.kind, in.columns, in.width);
  for (int i = 0; i < N; ++i) {
    if (kCommon || in.activate) {
      g.lanes[i] *= silu_slope(multiply_add(xhat.lanes[i], in.by.weight.lanes[i], in.by.bias.lanes[i]));
    }
    g.lanes[i] *= in.by.weight.lanes[i];
  }
  return g;
}

// `kept`: where to keep g, pixel by pixel; null if nowhere.
template <bool kCommon, int N, bool kPart, typename T>
static void sum_cotangents(const VjpTileInput<T, N, kPart>& in, int64_t pixels, float* kept, double* of_g,
                           double* of_gx) {
  for (int64_t begin = 0; begin < pixels; begin += kSumPixels) {
    const int64_t end = smaller(begin + kSumPixels, pixels);
    Pixel<N> sum_g = {}, sum_gx = {};
    for (int64_t p = begin; p < end; ++p) {
      const Pixel<N> xhat = normalised(in, p);
      const Pixel<N> g = cotangent_of<kCommon>(xhat, in, p);
      for (int i = 0; i < N; ++i) {
        sum_g.lanes[i] += g.lanes[i];
        sum_gx.lanes[i] = multiply_add(g.lanes[i], xhat.lanes[i], sum_gx.lanes[i]);
      }
      if (kept != nullptr) store_pixel<N, false>(kept + p * N * FASTPURE_LANES, g, 0);
    }
    add_to<N, kPart, T>(of_g, sum_g);
    add_to<N, kPart, T>(of_gx, sum_gx);
  }
}

// Other cotangents of one tile (their bases are null where they are absent), and what the sum is multiplied with.
template <typename T>
struct Others {
  Plane<const T> add, more;
  float scale;
};

// (inverse (g - mean(g) - xhat mean(g xhat)) + add + more) scale
template <bool kCommon, int N, bool kPart, typename T>
static void write_cotangents(const VjpTileInput<T, N, kPart>& in, int64_t pixels, const float* kept,
                             const Pixel<N>& mean_g, const Pixel<N>& mean_gx, const Others<T>& others, Plane<T> out) {
  const Plane<const T> planes[2] = {others.add, others.more};
  for (int64_t p = 0; p < pixels; ++p) {
    const Pixel<N> xhat = normalised(in, p);
    Pixel<N> g = kept != nullptr ? load_pixel<N, false>(kept + p * N * FASTPURE_LANES, 0)
                                 : cotangent_of<kCommon>(xhat, in, p);
    for (int i = 0; i < N; ++i) {
      const Lanes along = multiply_add(-xhat.lanes[i], mean_gx.lanes[i], g.lanes[i] - mean_g.lanes[i]);
      g.lanes[i] = along * in.by.inverse.lanes[i];
    }
    for (const Plane<const T>& other : planes) {
      if (other.base == nullptr) continue;
      const Pixel<N> more = load_pixel<N, kPart>(other.at(p), in.width);
      for (int i = 0; i < N; ++i) g.lanes[i] += more.lanes[i];
    }
    for (int i = 0; i < N; ++i) g.lanes[i] *= others.scale;
    store_pixel<N, kPart>(out.at(p), g, in.width);
  }
}

template <int N, bool kPart, typename T>
static VjpTileInput<T, N, kPart> vjp_input(const GroupNormVjpArgs& args, const Tile& tile, int64_t v_pixels) {
  const GroupNormShape shape = shape_of(args);
  Affine affine;
  fill_affine(args, tile, args.stats, affine);
  return {input_plane(shape, static_cast<const T*>(args.x), static_cast<const T*>(args.skip), tile.sample,
                      tile.channel),
          plane(static_cast<const T*>(args.v), tile.sample, v_pixels, shape.channels(), tile.channel),
          Normaliser<N, kPart, T>(affine),
          shape.resample,
          shape.activate,
          shape.width,
          tile.width};
}

template <typename T>
static Others<T> others_of(const GroupNormVjpArgs& args, const Tile& tile) {
  const GroupNormShape shape = shape_of(args);
  const bool of_x = tile.channel < shape.first;
  Others<T> others = {{nullptr, 0}, {nullptr, 0}, of_x ? static_cast<float>(args.scale) : 1.0f};
  if (args.add != nullptr) {
    others.add =
        plane(static_cast<const T*>(args.add), tile.sample, shape.pixels(), shape.channels(), tile.channel);
  }
  if (args.more != nullptr && of_x) {
    others.more = plane(static_cast<const T*>(args.more), tile.sample, shape.pixels(), shape.first, tile.channel);
  }
  return others;
}

// The two means of a group, at each channel of a tile.
static void spread_means(const GroupNormShape& shape, const Tile& tile, int64_t first_group, const GroupSums& sums,
                         ChannelNumbers& mean_g, ChannelNumbers& mean_gx) {
  const double count = static_cast<double>(shape.channels() / shape.groups * shape.pixels());
  for (int64_t i = tile.width; i < kTileChannels; ++i) mean_g.of[i] = mean_gx.of[i] = 0.0f;
  for_groups(shape, tile, [&](int64_t group, int64_t begin, int64_t end) {
    const float of_g = static_cast<float>(sums.g[group - first_group] / count);
    const float of_gx = static_cast<float>(sums.gx[group - first_group] / count);
    for (int64_t i = begin; i < end; ++i) {
      mean_g.of[i] = of_g;
      mean_gx.of[i] = of_gx;
    }
  });
}

// Whether g of the channels [begin, end) fits into what is kept; tiles are kept with all their lanes.
static bool can_keep(const GroupNormShape& shape, int64_t begin, int64_t end) {
  int64_t lanes = 0;
  for_channels(shape, 0, begin, end, [&](const Tile&, auto size) { lanes += decltype(size)::kLanes; });
  return lanes * shape.pixels() <= kKept;
}

template <typename T, bool kCommon>
static void group_norm_unit(const GroupNormVjpArgs& args, int64_t sample, int64_t first, int64_t last, float* kept) {
  const GroupNormShape shape = shape_of(args);
  const int64_t pixels = shape.pixels(), width = shape.channels() / shape.groups;
  const int64_t v_pixels = resampled_pixels(shape);
  float* place = kept;
  GroupSums sums = {};
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    double of_g[kTileChannels] = {}, of_gx[kTileChannels] = {};
    const auto in = vjp_input<decltype(size)::kVectors, decltype(size)::kPart, T>(args, tile, v_pixels);
    sum_cotangents<kCommon>(in, pixels, place, of_g, of_gx);
    add_to_groups(shape, tile, of_g, first, sums.g);
    add_to_groups(shape, tile, of_gx, first, sums.gx);
    if (place != nullptr) place += decltype(size)::kLanes * pixels;
  });
  place = kept;
  for_channels(shape, sample, first * width, last * width, [&](const Tile& tile, auto size) {
    constexpr int N = decltype(size)::kVectors;
    constexpr bool kPart = decltype(size)::kPart;
    ChannelNumbers mean_g, mean_gx;
    spread_means(shape, tile, first, sums, mean_g, mean_gx);
    const Plane<T> out = input_plane(shape, static_cast<T*>(args.v_x), static_cast<T*>(args.v_skip), sample, tile.channel);
    write_cotangents<kCommon>(vjp_input<N, kPart, T>(args, tile, v_pixels), pixels, place,
                              as_pixel<N, kPart, T>(mean_g.of), as_pixel<N, kPart, T>(mean_gx.of),
                              others_of<T>(args, tile), out);
    if (place != nullptr) place += decltype(size)::kLanes * pixels;
  });
}

template <typename T, bool kCommon>
static void group_norm_units(const GroupNormVjpArgs& args, int64_t begin, int64_t end) {
  const GroupNormShape shape = shape_of(args);
  const int64_t each = groups_per_unit(shape), units = units_per_sample(shape);
  const int64_t width = shape.channels() / shape.groups;
  alignas(64) float kept[kKept];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit % units * each, last = smaller(first + each, shape.groups);
    const bool keeps = can_keep(shape, first * width, last * width);
    group_norm_unit<T, kCommon>(args, unit / units, first, last, keeps ? kept : nullptr);
  }
}
