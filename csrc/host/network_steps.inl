// The steps of a network for one sample, both directions; attention.inl has its own. Included by loops.inl, inside its
// namespace, behind convolution.inl.

// Memory handed out piece by piece, and taken back in the opposite order: what is used next should be in the cache.
//
// Whoever takes more than `arena_bytes` says is stopped, in every build: it costs a comparison for thousands of products,
// and the alternative is to write over somebody else's memory. A sanitizer sees the pieces, with gaps between them.
class Arena {
 public:
  Arena(char* memory, int64_t bytes) : memory_(memory), bytes_(bytes) { FASTPURE_POISON(memory_, bytes_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { FASTPURE_UNPOISON(memory_, bytes_); }

  template <typename T>
  T* take(int64_t count) {
    const int64_t size = count * static_cast<int64_t>(sizeof(T)), begin = used_;
    used_ += (size + 63) / 64 * 64 + kArenaGap;
    if (used_ > bytes_) __builtin_trap();
    FASTPURE_UNPOISON(memory_ + begin, size);
    return reinterpret_cast<T*>(memory_ + begin);
  }
  int64_t mark() const { return used_; }
  void release(int64_t mark) {
    FASTPURE_POISON(memory_ + mark, used_ - mark);
    used_ = mark;
  }

 private:
  char* memory_;
  int64_t bytes_, used_ = 0;
};

static int64_t output_height(const NetworkStep& step) {
  return step.resample == kUp ? 2 * step.height : step.resample == kDown ? step.height / 2 : step.height;
}
static int64_t output_width(const NetworkStep& step) {
  return step.resample == kUp ? 2 * step.width : step.resample == kDown ? step.width / 2 : step.width;
}

// More than a step takes from the arena in either direction, in bytes.
static int64_t arena_bytes(const NetworkStep& step) {
  const int64_t up = step.resample == kUp ? 2 : 1;
  const int64_t larger = (up * step.height + 2) * (up * step.width + 2);
  const int64_t channels = step.inputs + step.skips + step.outputs + 32, pixels = step.height * step.width;
  const int64_t images = 8 * larger * channels;
  const int64_t attended = step.kind == kAttention ? pixels * (4 * pixels + 12 * step.inputs) : 0;
  return 4 * (images + attended) + 64 * 64;
}

// One sample of a call.
template <typename T>
struct Sample {
  const NetworkStep& step;
  Arena& arena;
  const T* x;      // the step's input
  const T* skip;
  T* tape;
  float* stats;
  const T* rows;
};

template <typename T>
static const float* row_of(const Sample<T>& s, const T* numbers, int64_t count) {
  float* row = s.arena.template take<float>(count + 32);
  for (int64_t i = 0; i < count; ++i) row[i] = widen(numbers[i]);
  return row;
}

template <typename T>
constexpr DType dtype_of() {
  return sizeof(T) == 4 ? kFloat32 : kBFloat16;
}

// What normalises [x, skip] of one sample; without skips `second` is 0.
template <typename T>
static GroupNormLayout norm_layout(int64_t first, int64_t second, int64_t height, int64_t width) {
  return {1, first, second, height, width, 0, 0, 0, dtype_of<T>(), dtype_of<T>()};
}

template <typename T, typename Args>
static void run_norm(const Args& args) {
  group_norm_any<T, Args>(args, 0, units_per_sample(shape_of(args)));
}

// The step's first normalisation, of [x, skip].
template <typename T>
static T* first_norm(const Sample<T>& s, bool activate) {
  const NetworkStep& step = s.step;
  T* y = s.arena.template take<T>(output_height(step) * output_width(step) * (step.inputs + step.skips));
  const GroupNormArgs args{s.x,           s.skip,        nullptr, step.norm_weight, step.norm_bias,
                           step.groups,   step.eps,      step.resample, activate,   y,
                           s.stats + step.stats, nullptr, 1.0,     nullptr,
                           norm_layout<T>(step.inputs, step.skips, step.height, step.width)};
  run_norm<T>(args);
  return y;
}

// Convolution of an image of one sample with 3x3 weights.
template <typename T>
static void convolve_image(const Sample<T>& s, const T* in, int64_t height, int64_t width, int64_t inputs,
                           const void* weights, int64_t outputs, const Finish<T>& to) {
  const int64_t channels = padded_channels<T>(inputs);
  const int64_t mark = s.arena.mark();
  T* padded = s.arena.template take<T>((height + 2) * (width + 2) * channels);
  pad(in, height, width, inputs, padded);
  convolve(padded, height, width, channels, weights, outputs, to);
  s.arena.release(mark);
}

template <typename T>
static T* resampled_image(const Sample<T>& s, const T* in, int64_t height, int64_t width, int64_t channels, bool spread,
                          double scale) {  // height and width of the smaller image
  T* out = s.arena.template take<T>((spread ? 4 : 1) * height * width * channels);
  const ResampleArgs args{in, spread, scale, out, 1, channels, height, width, dtype_of<T>()};
  resample_rows<T>(args, 0, height);
  return out;
}

// R([x, skip]), mapped where the step has a map for it.
template <typename T>
static const T* shortcut_of(const Sample<T>& s) {
  const NetworkStep& step = s.step;
  const int64_t pixels = step.height * step.width, channels = step.inputs + step.skips;
  const T* image = s.x;
  if (step.skips > 0) {
    T* both = s.arena.template take<T>(pixels * channels);
    for (int64_t p = 0; p < pixels; ++p) {
      std::memcpy(both + p * channels, s.x + p * step.inputs, static_cast<size_t>(step.inputs) * sizeof(T));
      std::memcpy(both + p * channels + step.inputs, s.skip + p * step.skips, static_cast<size_t>(step.skips) * sizeof(T));
    }
    image = both;
  }
  int64_t height = step.height, width = step.width;
  if (step.resample == kDown) {
    height /= 2;
    width /= 2;
    image = resampled_image(s, image, height, width, channels, false, 0.25);
  }
  if (step.shortcut != nullptr) {
    T* mapped = s.arena.template take<T>(height * width * step.outputs);
    map_pixels(image, height * width, channels, step.shortcut, step.outputs,
               Finish<T>{mapped, step.outputs, nullptr, nullptr, 1.0f});
    image = mapped;
  }
  // A map of single pixels commutes with copying them, and costs a quarter before it.
  return step.resample == kUp ? resampled_image(s, image, height, width, step.outputs, true, 1.0) : image;
}

template <typename T>
static void block_forward(const Sample<T>& s, T* out) {
  const NetworkStep& step = s.step;
  const int64_t height = output_height(step), width = output_width(step), outputs = step.outputs;
  const float* rows = row_of(s, s.rows + step.row, 2 * outputs);
  T* middle = s.tape + step.middle;
  const int64_t mark = s.arena.mark();
  convolve_image(s, first_norm(s, true), height, width, step.inputs + step.skips, step.first, outputs,
                 Finish<T>{middle, outputs, nullptr, rows, 1.0f});
  s.arena.release(mark);
  const T* shortcut = shortcut_of(s);
  T* activated = s.arena.template take<T>(height * width * outputs);
  const GroupNormArgs second{middle,  nullptr, nullptr, step.second_norm_weight, step.second_norm_bias,
                             step.second_groups, step.eps, kKeep, 1, activated,
                             s.stats + step.second_stats, nullptr, 1.0, nullptr,
                             norm_layout<T>(outputs, 0, height, width)};
  run_norm<T>(second);
  convolve_image(s, activated, height, width, outputs, step.second, outputs,
                 Finish<T>{out, outputs, shortcut, rows + outputs, static_cast<float>(step.scale)});
}

template <typename T>
static const T* scaled(const Sample<T>& s, const T* v, int64_t count) {
  if (s.step.scale == 1.0) return v;
  const float scale = static_cast<float>(s.step.scale);
  T* out = s.arena.template take<T>(count);
  // Blocks and attention have multiples of 16 channels.
  for (int64_t i = 0; i < count; i += FASTPURE_LANES) store_lanes(out + i, load_lanes(v + i) * scale);
  return out;
}

// The transpose of `shortcut_of`: the cotangent of [x, skip].
template <typename T>
static const T* shortcut_back(const Sample<T>& s, const T* v) {
  const NetworkStep& step = s.step;
  const int64_t channels = step.inputs + step.skips;
  int64_t height = output_height(step), width = output_width(step);
  if (step.resample == kUp) {
    height = step.height;
    width = step.width;
    v = resampled_image(s, v, height, width, step.outputs, false, 1.0);
  }
  if (step.shortcut_back != nullptr) {
    T* mapped = s.arena.template take<T>(height * width * channels);
    map_pixels(v, height * width, step.outputs, step.shortcut_back, channels,
               Finish<T>{mapped, channels, nullptr, nullptr, 1.0f});
    v = mapped;
  }
  return step.resample == kDown ? resampled_image(s, v, height, width, channels, true, 0.25) : v;
}

// Where a step's cotangents go.
template <typename T>
struct Cotangents {
  T *x, *skip;
};

// The transpose of `first_norm`, to which `add` (of [x, skip]) and what is in x already are added.
template <typename T>
static void first_norm_back(const Sample<T>& s, bool activate, const T* v, const T* add, const Cotangents<T>& to) {
  const NetworkStep& step = s.step;
  const GroupNormVjpArgs args{v,           s.x,         s.skip,        nullptr,  step.norm_weight, step.norm_bias,
                              s.stats + step.stats, step.groups, step.resample, activate, add,   to.x,
                              to.skip,     step.adds ? to.x : nullptr, 1.0,
                              norm_layout<T>(step.inputs, step.skips, step.height, step.width)};
  run_norm<T>(args);
}

template <typename T>
static void block_back(const Sample<T>& s, const T* v_out, const Cotangents<T>& to) {
  const NetworkStep& step = s.step;
  const int64_t height = output_height(step), width = output_width(step), pixels = height * width;
  const int64_t outputs = step.outputs, channels = step.inputs + step.skips;
  const T* v = scaled(s, v_out, pixels * outputs);
  T* of_first = s.arena.template take<T>(pixels * channels);
  const int64_t mark = s.arena.mark();
  T* of_middle = s.arena.template take<T>(pixels * outputs);
  convolve_image(s, v, height, width, outputs, step.second_back, outputs,
                 Finish<T>{of_middle, outputs, nullptr, nullptr, 1.0f});
  const GroupNormVjpArgs second{of_middle, s.tape + step.middle, nullptr, nullptr, step.second_norm_weight,
                                step.second_norm_bias, s.stats + step.second_stats, step.second_groups, kKeep, 1,
                                nullptr, of_middle, nullptr, nullptr, 1.0, norm_layout<T>(outputs, 0, height, width)};
  run_norm<T>(second);
  convolve_image(s, of_middle, height, width, outputs, step.first_back, channels,
                 Finish<T>{of_first, channels, nullptr, nullptr, 1.0f});
  s.arena.release(mark);
  first_norm_back(s, true, of_first, shortcut_back(s, v), to);
}

template <typename T>
static void head_forward(const Sample<T>& s, T* out) {
  const NetworkStep& step = s.step;
  convolve_image(s, first_norm(s, true), step.height, step.width, step.inputs, step.first, step.outputs,
                 Finish<T>{out, step.outputs, nullptr,
                           row_of(s, static_cast<const T*>(step.first_bias), step.outputs), 1.0f});
}

template <typename T>
static void head_back(const Sample<T>& s, const T* v, const Cotangents<T>& to) {
  const NetworkStep& step = s.step;
  T* of_first = s.arena.template take<T>(step.height * step.width * step.inputs);
  convolve_image(s, v, step.height, step.width, step.outputs, step.first_back, step.inputs,
                 Finish<T>{of_first, step.inputs, nullptr, nullptr, 1.0f});
  first_norm_back<T>(s, true, of_first, nullptr, to);
}

template <typename T>
static void convolution_forward(const Sample<T>& s, T* out) {
  const NetworkStep& step = s.step;
  convolve_image(s, s.x, step.height, step.width, step.inputs, step.first, step.outputs,
                 Finish<T>{out, step.outputs, nullptr,
                           row_of(s, static_cast<const T*>(step.first_bias), step.outputs), 1.0f});
}

template <typename T>
static void convolution_back(const Sample<T>& s, const T* v, const Cotangents<T>& to) {
  const NetworkStep& step = s.step;
  const T* residual = step.adds ? to.x : nullptr;
  convolve_image(s, v, step.height, step.width, step.outputs, step.first_back, step.inputs,
                 Finish<T>{to.x, step.inputs, residual, nullptr, 1.0f});
}
