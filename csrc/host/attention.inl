// Self-attention of one sample with one head, in float32 whatever the activations are. Included by loops.inl,
// inside its namespace, behind network_steps.inl.

template <typename T>
static float* widened(const Sample<T>& s, const T* from, int64_t count) {
  float* wide = s.arena.template take<float>(count);
  for (int64_t i = 0; i < count; ++i) wide[i] = widen(from[i]);
  return wide;
}

[[maybe_unused]] static void narrowed(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

[[maybe_unused]] static void narrowed(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; i += FASTPURE_LANES) store_lanes(to + i, load_lanes(from + i));
}

// out [columns, rows] of in [rows, columns], whose rows lie `stride` apart.
template <typename T>
static float* transposed(const Sample<T>& s, const float* in, int64_t rows, int64_t columns, int64_t stride) {
  float* out = s.arena.template take<float>(rows * columns);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * rows + r] = in[r * stride + c];
  }
  return out;
}

// Every row exp(row - its largest) / their sum; `count` columns, a multiple of 16.
static void softmax_rows(float* matrix, int64_t rows, int64_t count) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = matrix + r * count;
    float largest = row[0];
    for (int64_t i = 1; i < count; ++i) largest = row[i] > largest ? row[i] : largest;
    float parts[16] = {};
    for (int64_t i = 0; i < count; i += FASTPURE_LANES) {
      const Lanes e = exp_of_minus(not_above(largest - load_lanes(row + i)));
      store_lanes(row + i, e);
      const int64_t lane = i % 16;  // the same order of sums whatever the width
      store_lanes(parts + lane, load_lanes(parts + lane) + e);
    }
    float sum = 0.0f;
    for (const float part : parts) sum += part;
    for (int64_t i = 0; i < count; i += FASTPURE_LANES) store_lanes(row + i, load_lanes(row + i) / sum);
  }
}

// q, k and v beside each other, and the matrix of attention.
struct Attended {
  const float* qkv;   // [S, 3 C]
  float* matrix;      // [S, S]
  int64_t tokens, channels;
  float scale;
  const float* q() const { return qkv; }
  const float* k() const { return qkv + channels; }
  const float* v() const { return qkv + 2 * channels; }
  int64_t stride() const { return 3 * channels; }
};

template <typename T>
static Attended attend(const Sample<T>& s) {
  const NetworkStep& step = s.step;
  const int64_t tokens = step.height * step.width, channels = step.inputs;
  Attended a = {widened(s, static_cast<const T*>(s.tape + step.middle), 3 * tokens * channels),
                s.arena.template take<float>(tokens * tokens), tokens, channels,
                1.0f / __builtin_sqrtf(static_cast<float>(channels))};
  const float* k_t = transposed(s, a.k(), tokens, channels, a.stride());
  multiply(a.q(), a.stride(), k_t, tokens, tokens, channels, tokens, a.scale, a.matrix, tokens);
  softmax_rows(a.matrix, tokens, tokens);
  return a;
}

template <typename T>
static void attention_forward(const Sample<T>& s, T* out) {
  const NetworkStep& step = s.step;
  const int64_t tokens = step.height * step.width, channels = step.inputs;
  map_pixels(static_cast<const T*>(first_norm(s, false)), tokens, channels, step.first, 3 * channels,
             Finish<T>{s.tape + step.middle, 3 * channels, nullptr,
                       row_of(s, static_cast<const T*>(step.first_bias), 3 * channels), 1.0f});
  const Attended a = attend(s);
  float* h = s.arena.template take<float>(tokens * channels);
  multiply(a.matrix, tokens, a.v(), a.stride(), tokens, tokens, channels, 1.0f, h, channels);
  T* narrow = s.arena.template take<T>(tokens * channels);
  narrowed(h, tokens * channels, narrow);
  map_pixels(static_cast<const T*>(narrow), tokens, channels, step.second, channels,
             Finish<T>{out, channels, s.x, row_of(s, static_cast<const T*>(step.second_bias), channels),
                       static_cast<float>(step.scale)});
}

template <typename T>
static void attention_back(const Sample<T>& s, const T* v_out, const Cotangents<T>& to) {
  const NetworkStep& step = s.step;
  const int64_t tokens = step.height * step.width, channels = step.inputs, size = tokens * channels;
  const T* v = scaled(s, v_out, size);
  T* narrow = s.arena.template take<T>(size);
  map_pixels(v, tokens, channels, step.second_back, channels, Finish<T>{narrow, channels, nullptr, nullptr, 1.0f});
  const float* v_h = widened(s, static_cast<const T*>(narrow), size);
  const Attended a = attend(s);
  float* v_logits = s.arena.template take<float>(tokens * tokens);
  const float* v_t = transposed(s, a.v(), tokens, channels, a.stride());
  multiply(v_h, channels, v_t, tokens, tokens, channels, tokens, 1.0f, v_logits, tokens);
  for (int64_t r = 0; r < tokens; ++r) {  // the transpose of softmax
    float *row = v_logits + r * tokens, sum = 0.0f;
    const float* p = a.matrix + r * tokens;
    for (int64_t i = 0; i < tokens; ++i) sum += row[i] * p[i];
    for (int64_t i = 0; i < tokens; ++i) row[i] = p[i] * (row[i] - sum);
  }
  float* v_qkv = s.arena.template take<float>(3 * size);
  const int64_t stride = a.stride();
  multiply(v_logits, tokens, a.k(), stride, tokens, tokens, channels, a.scale, v_qkv, stride);
  multiply(transposed(s, v_logits, tokens, tokens, tokens), tokens, a.q(), stride, tokens, tokens, channels, a.scale,
           v_qkv + channels, stride);
  multiply(transposed(s, a.matrix, tokens, tokens, tokens), tokens, v_h, channels, tokens, tokens, channels, 1.0f,
           v_qkv + 2 * channels, stride);
  T* of_map = s.arena.template take<T>(3 * size);
  narrowed(v_qkv, 3 * size, of_map);
  T* of_norm = s.arena.template take<T>(size);
  map_pixels(static_cast<const T*>(of_map), tokens, 3 * channels, step.first_back, channels,
             Finish<T>{of_norm, channels, nullptr, nullptr, 1.0f});
  first_norm_back(s, false, static_cast<const T*>(of_norm), v, to);
}
