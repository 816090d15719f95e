// Resampling by two and the end of a residual block. Included by loops.inl, inside its namespace, behind group_norm.inl.

// The rows [begin, end) of the smaller images, counted through the batch.
template <typename T>
static void resample_rows(const ResampleArgs& args, int64_t begin, int64_t end) {
  const int64_t channels = args.channels, columns = args.width;
  const float scale = static_cast<float>(args.scale);
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.out);
  for (int64_t row = begin; row < end; ++row) {
    for_spans(0, channels, [&](int64_t channel, int64_t width, auto size) {
      constexpr int N = decltype(size)::kVectors;
      constexpr bool kPart = decltype(size)::kPart;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t one = (row * columns + column) * channels + channel;
        const int64_t first = (4 * row * columns + 2 * column) * channels + channel;
        const int64_t four[4] = {first, first + channels, first + 2 * columns * channels,
                                 first + (2 * columns + 1) * channels};
        if (args.spread) {
          Pixel<N> a = load_pixel<N, kPart>(x + one, width);
          for (int i = 0; i < N; ++i) a.lanes[i] *= scale;
          for (const int64_t corner : four) store_pixel<N, kPart>(out + corner, a, width);
        } else {
          Pixel<N> sum = load_pixel<N, kPart>(x + four[0], width);
          for (int k = 1; k < 4; ++k) {
            const Pixel<N> a = load_pixel<N, kPart>(x + four[k], width);
            for (int i = 0; i < N; ++i) sum.lanes[i] += a.lanes[i];
          }
          for (int i = 0; i < N; ++i) sum.lanes[i] *= scale;
          store_pixel<N, kPart>(out + one, sum, width);
        }
      }
    });
  }
}

// Stretches [begin, end) of kRowPixels pixels, counted through the batch.
template <typename T>
static void residual_rows(const ResidualArgs& args, int64_t begin, int64_t end) {
  const int64_t rows = rows_per_sample(args);
  const float scale = static_cast<float>(args.scale);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / rows, from = row % rows * kRowPixels, to = smaller(from + kRowPixels, args.pixels);
    for_spans(0, args.channels, [&](int64_t channel, int64_t width, auto size) {
      constexpr int N = decltype(size)::kVectors;
      constexpr bool kPart = decltype(size)::kPart;
      const auto at = [&](auto* tensor) { return plane(tensor, sample, args.pixels, args.channels, channel); };
      const Plane<const T> a = at(static_cast<const T*>(args.a)), b = at(static_cast<const T*>(args.b));
      const Plane<T> out = at(static_cast<T*>(args.out));
      ChannelNumbers numbers;
      channel_numbers(args.bias, args.bias_stride, args.vectors, {sample, channel, width}, 0.0f, numbers);
      const Pixel<N> bias = as_pixel<N, kPart, T>(numbers.of);
      for (int64_t p = from; p < to; ++p) {
        Pixel<N> sum = load_pixel<N, kPart>(a.at(p), width);
        const Pixel<N> other = load_pixel<N, kPart>(b.at(p), width);
        for (int i = 0; i < N; ++i) sum.lanes[i] = ((sum.lanes[i] + other.lanes[i]) + bias.lanes[i]) * scale;
        store_pixel<N, kPart>(out.at(p), sum, width);
      }
    });
  }
}
