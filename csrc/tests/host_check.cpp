// A stand-alone check of the host kernels, built with sanitizers by `make sanitize`: known answers, accuracy of the
// normals over every possible argument, equality with element-by-element loops for awkward sizes, guard bands;
// GroupNorm+SiLU against double arithmetic, with the same bits from every instruction set.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "fastpure/philox.h"
#include "fastpure/row.h"
#include "host/kernels.h"
#include "host/launch.h"

using namespace fastpure;

namespace {

int failures = 0;

void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what);
}

template <typename T>
bool same_bits(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

// A buffer with poisoned bands on both sides; the sanitizer watches what lies beyond them.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size, T value = T(0)) : size_(size), data_(size + 2 * kBand, value) {
    for (int64_t i = 0; i < kBand; ++i) data_[i] = data_[size_ + kBand + i] = kPoison;
  }
  T* get() { return data_.data() + kBand; }
  bool intact() const {
    for (int64_t i = 0; i < kBand; ++i) {
      if (data_[i] != kPoison || data_[size_ + kBand + i] != kPoison) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kBand = 67;
  static constexpr T kPoison = T(12345);
  int64_t size_;
  std::vector<T> data_;
};

void check_known_answers() {
  const struct {
    uint32_t counter[4], key[2], expected[4];
  } cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {1713891541u, 3781805453u, 3159862348u, 2600524760u}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {1083123565u, 1103641358u, 2718681030u, 1834242557u}},
      {{608135816u, 2242054355u, 320440878u, 57701188u},
       {2752067618u, 698298832u},
       {3513581065u, 2499661035u, 1342301216u, 605187745u}},
  };
  for (const auto& c : cases) {
    const Words w = philox4x32_10(c.counter[0], c.counter[1], c.counter[2], c.counter[3], c.key[0], c.key[1]);
    const uint32_t got[4] = {w.w0, w.w1, w.w2, w.w3};
    expect(same_bits(got, c.expected, 4), "Philox4x32-10 known answer");
  }
}

// A normal is a radius times a cosine or sine, each a function of 23 bits: all of them are tried, and the sum of
// the two worst errors bounds the error of every normal.
template <typename T>
void check_normals(double tolerance) {
  const long double pi = 3.141592653589793238462643383279502884L;
  double radius_error = 0, turn_error = 0, radius_max = 0;
  for (uint32_t word = 0; word < (1u << 23); ++word) {
    const long double u = (word + 0.5L) / 8388608.0L;
    T along, across;
    normal_pair<T>(word << 9, 0, along, across);  // angle 2 pi 2^-24: the cosine is 1 to the last bit of a float
    const double cosine = std::cos(2.0 * static_cast<double>(pi) / 16777216.0);
    radius_error = std::fmax(radius_error, std::fabs(along / cosine - static_cast<double>(std::sqrt(-2 * std::log(u)))));
    radius_max = std::fmax(radius_max, std::fabs(along));
    const uint32_t widest = 0;  // the smallest uniform gives the largest radius
    normal_pair<T>(widest, word << 9, along, across);
    const long double r = std::sqrt(-2 * std::log(0.5L / 8388608.0L));
    turn_error = std::fmax(turn_error, static_cast<double>(std::fabs(along - r * std::cos(2 * pi * u))));
    turn_error = std::fmax(turn_error, static_cast<double>(std::fabs(across - r * std::sin(2 * pi * u))));
  }
  std::printf("normals, %zu-byte: worst radius error %.3g, worst error at the largest radius %.3g, |z| <= %.4f\n",
              sizeof(T), radius_error, turn_error, radius_max);
  expect(radius_error + turn_error <= tolerance, "accuracy of the normals");
  expect(radius_max < 5.78, "largest normal");
}

template <typename T>
struct Problem {
  Problem(int64_t batch, int64_t channels, int64_t pixels, Layout layout)
      : shape{batch, channels, pixels, layout}, size(batch * channels * pixels), inputs(), table(16, T(0)) {
    for (int k = 0; k < 4; ++k) {
      inputs.emplace_back(size);
      for (int64_t i = 0; i < size; ++i) {
        const Words w = philox4x32_10(static_cast<uint32_t>(i), static_cast<uint32_t>(k), 7, 7, 7, 7);
        T z;
        T unused;
        normal_pair<T>(w.w0, w.w1, z, unused);
        inputs.back().get()[i] = z;
      }
    }
    const double row[12] = {1.013, -0.27, 0.113, 0.31, -0.5, 1.11, -0.48, 0.2, 0.07, 0.9, 0.43, 0};
    for (int i = 0; i < 12; ++i) table[i] = static_cast<T>(row[i]);
    for (int64_t b = 0; b < batch; ++b) {
      ids.push_back(5 * b + 4000000000ll);
      draws.push_back(b % 3);
    }
  }

  BatchShape shape;
  int64_t size;
  std::vector<Guarded<T>> inputs;  // x, e, g, h
  std::vector<T> table;
  int64_t seed = -42, step = 0;
  std::vector<int64_t> ids, draws;

  NoiseSource source() const { return {&seed, ids.data(), draws.data(), &step, 1, 2}; }

  // Noise of the element at this place in memory, one at a time.
  T noise_at(int64_t place) const {
    const int64_t per_sample = shape.channels * shape.pixels, sample = place / per_sample;
    int64_t element = place % per_sample;
    if (shape.layout == kChannelsLast) {
      element = element % shape.channels * shape.pixels + element / shape.channels;
    }
    const Words w = philox4x32_10(static_cast<uint32_t>(element / 4), counter_word(0, 1, 2),
                                  static_cast<uint32_t>(ids[sample]), static_cast<uint32_t>(draws[sample]),
                                  static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
    T z[4];
    normal_pair<T>(w.w0, w.w1, z[0], z[1]);
    normal_pair<T>(w.w2, w.w3, z[2], z[3]);
    return z[element % 4];
  }
};

template <typename T>
constexpr DType kDType = sizeof(T) == 4 ? kFloat32 : kFloat64;

template <typename T>
void check_noise(Problem<T>& p, const host::Kernels& kernels, int threads) {
  Guarded<T> out(p.size);
  const NoiseArgs args{p.source(), p.shape, kNormal, out.get()};
  expect(host::noise(args, kDType<T>, threads, kernels) == kOk, "noise status");
  for (int64_t i = 0; i < p.size; ++i) {
    const T z = p.noise_at(i);
    if (!same_bits(&z, out.get() + i, 1)) return expect(false, "noise equals the element-by-element loop");
  }
  expect(out.intact(), "noise writes only its output");
}

template <typename T>
void check_row(Problem<T>& p, bool clip, const host::Kernels& kernels, int threads) {
  p.table[kClipColumn] = static_cast<T>(clip);
  T *x = p.inputs[0].get(), *e = p.inputs[1].get(), *g = p.inputs[2].get(), *h = p.inputs[3].get();
  Guarded<T> x_next(p.size), h_next(p.size), v_x(p.size), v_e(p.size), v_g(p.size), v_h(p.size);
  const RowArgs args{x, e, g, h, nullptr, p.source(), p.table.data(), 1, &p.step, p.shape, x_next.get(), h_next.get()};
  expect(host::affine_row(args, kDType<T>, threads, kernels) == kOk, "row status");
  const RowVjpArgs vjp{g, h, x, e, p.table.data(), 1, &p.step, p.size, v_x.get(), v_e.get(), v_g.get(), v_h.get()};
  expect(host::affine_row_vjp(vjp, kDType<T>, threads, kernels) == kOk, "transposed row status");
  const Row<T> row = load_row<T>(p.table.data(), 0);
  for (int64_t i = 0; i < p.size; ++i) {
    const T used = clip ? clipped_noise_pred(row, x[i], e[i]) : e[i];
    const T ve = v_noise_pred_inside<true>(row, g[i], h[i]);
    const bool outside = clip && is_outside(predicted_image(row, x[i], e[i]));
    const T expected[6] = {next_state<true, true, true>(row, x[i], used, g[i], h[i], p.noise_at(i)),
                           next_register<true>(row, x[i], used, g[i], h[i]),
                           outside ? v_state_outside<true>(row, g[i], h[i], ve) : v_state_inside<true>(row, g[i], h[i]),
                           outside ? T(0) : ve,
                           v_guidance<true>(row, g[i], h[i]),
                           v_register<true>(row, g[i], h[i])};
    const T got[6] = {x_next.get()[i], h_next.get()[i], v_x.get()[i], v_e.get()[i], v_g.get()[i], v_h.get()[i]};
    if (!same_bits(expected, got, 6)) return expect(false, "row equals the element-by-element loop");
  }
  for (const Guarded<T>* out : {&x_next, &h_next, &v_x, &v_e, &v_g, &v_h}) {
    expect(out->intact(), "row writes only its outputs");
  }
}

template <typename T>
void check_sizes(const host::Kernels& kernels) {
  const int64_t shapes[][3] = {{1, 1, 1},    {2, 3, 35},   {1, 1, 1023}, {2, 1, 1025}, {3, 5, 7},
                               {2, 3, 1024}, {1, 1030, 2}, {9, 3, 4099}, {0, 3, 4},    {5, 2, 64}};
  for (const auto& s : shapes) {
    for (const Layout layout : {kContiguous, kChannelsLast}) {
      Problem<T> problem(s[0], s[1], s[2], layout);
      for (const int threads : {1, 4}) {
        check_noise(problem, kernels, threads);
        check_row(problem, false, kernels, threads);
        check_row(problem, true, kernels, threads);
      }
    }
  }
}

// bfloat16 as its bits, rounded to nearest even.
uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

double widen(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<double>(value);
}

double widen(float value) { return static_cast<double>(value); }

template <typename T>
T number(uint32_t index, uint32_t stream) {
  float z, unused;
  const Words w = philox4x32_10(index, stream, 5, 5, 5, 5);
  normal_pair<float>(w.w0, w.w1, z, unused);
  if constexpr (sizeof(T) == 2) {
    return narrow(z);
  } else {
    return z;
  }
}

// One call of both directions; outputs lie between poisoned bands.
template <typename T>
struct NormProblem {
  host::GroupNormShape shape;
  int64_t in, out;
  Guarded<T> x, skip, v, add, vectors, y, v_x, v_skip;
  Guarded<float> stats;

  explicit NormProblem(const host::GroupNormShape& s)
      : shape(s),
        in(s.batch * s.pixels()),
        out(s.resample == host::kUp ? 4 * in : s.resample == host::kDown ? in / 4 : in),
        x(in * s.first), skip(in * s.second), v(out * s.channels()), add(in * s.channels()),
        vectors(3 * s.batch * s.channels()), y(out * s.channels()), v_x(in * s.first), v_skip(in * s.second),
        stats(2 * s.batch * s.groups) {
    uint32_t stream = 0;
    for (auto [data, count] : {std::pair{x.get(), in * s.first}, {skip.get(), in * s.second},
                               {v.get(), out * s.channels()}, {add.get(), in * s.channels()},
                               {vectors.get(), 3 * s.batch * s.channels()}}) {
      for (int64_t i = 0; i < count; ++i) data[i] = number<T>(static_cast<uint32_t>(i), stream);
      ++stream;
    }
  }

  host::ChannelVector vector(int which) {
    return {vectors.get() + which * shape.batch * shape.channels(), shape.channels()};
  }

  double vector_at(int which, int64_t sample, int64_t channel) {
    return widen(vectors.get()[(which * shape.batch + sample) * shape.channels() + channel]);
  }

  // The normalised input's source: [x, skip] + row.
  double input_at(int64_t sample, int64_t pixel, int64_t c) {
    const int64_t place = sample * shape.pixels() + pixel;
    const T raw = c < shape.first ? x.get()[place * shape.first + c]
                                  : skip.get()[place * shape.second + c - shape.first];
    return widen(raw) + vector_at(0, sample, c);
  }

  void run(const host::Kernels& kernels, int threads) {
    const DType dtype = sizeof(T) == 2 ? kBFloat16 : kFloat32;
    shape.vectors = dtype;
    const host::GroupNormArgs args{shape, x.get(), skip.get(), vector(0), vector(1), vector(2), 1e-6, y.get(), stats.get()};
    expect(host::group_norm(args, dtype, threads, kernels) == kOk, "GroupNorm status");
    const host::GroupNormVjpArgs vjp{shape,     v.get(),     x.get(),   skip.get(), vector(0),   vector(1),
                                     vector(2), stats.get(), add.get(), v_x.get(),  v_skip.get()};
    expect(host::group_norm_vjp(vjp, dtype, threads, kernels) == kOk, "transposed GroupNorm status");
    expect(y.intact() && v_x.intact() && v_skip.intact() && stats.intact(), "GroupNorm writes only its outputs");
  }

  // Places of y that belong to an input pixel, and how y and its cotangent weigh there.
  std::vector<int64_t> places(int64_t sample, int64_t pixel) const {
    const int64_t i = pixel / shape.width, j = pixel % shape.width, base = sample * (out / shape.batch);
    if (shape.resample == host::kKeep) return {base + pixel};
    if (shape.resample == host::kDown) return {base + i / 2 * (shape.width / 2) + j / 2};
    const int64_t first = base + 4 * i * shape.width + 2 * j;
    return {first, first + 1, first + 2 * shape.width, first + 2 * shape.width + 1};
  }

  double weight_of_place() const { return shape.resample == host::kDown ? 0.25 : 1.0; }
};

// Both directions in double arithmetic, element by element.
template <typename T>
void check_group_norm(NormProblem<T>& p, double tolerance) {
  const host::GroupNormShape& s = p.shape;
  const int64_t width = s.channels() / s.groups;
  std::vector<double> y(p.out * s.channels(), 0.0);
  double worst = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t group = 0; group < s.groups; ++group) {
      const int64_t count = width * s.pixels(), first = group * width;
      double mean = 0, variance = 0, mean_g = 0, mean_gx = 0;
      std::vector<double> xhat(count), g(count);
      const auto each = [&](auto body) {
        for (int64_t k = 0; k < count; ++k) body(k, k / width, first + k % width);
      };
      each([&](int64_t, int64_t pixel, int64_t c) { mean += p.input_at(b, pixel, c) / count; });
      each([&](int64_t, int64_t pixel, int64_t c) {
        variance += (p.input_at(b, pixel, c) - mean) * (p.input_at(b, pixel, c) - mean) / count;
      });
      const double inverse = 1 / std::sqrt(variance + 1e-6);
      each([&](int64_t k, int64_t pixel, int64_t c) {
        xhat[k] = (p.input_at(b, pixel, c) - mean) * inverse;
        const double n = xhat[k] * p.vector_at(1, b, c) + p.vector_at(2, b, c), sigmoid = 1 / (1 + std::exp(-n));
        double cotangent = 0;
        for (const int64_t place : p.places(b, pixel)) {
          y[place * s.channels() + c] += p.weight_of_place() * (s.activate ? n * sigmoid : n);
          cotangent += p.weight_of_place() * widen(p.v.get()[place * s.channels() + c]);
        }
        g[k] = cotangent * (s.activate ? sigmoid * (1 + n * (1 - sigmoid)) : 1.0) * p.vector_at(1, b, c);
        mean_g += g[k] / count;
        mean_gx += g[k] * xhat[k] / count;
      });
      each([&](int64_t k, int64_t pixel, int64_t c) {
        const int64_t place = b * s.pixels() + pixel;
        const T found = c < s.first ? p.v_x.get()[place * s.first + c] : p.v_skip.get()[place * s.second + c - s.first];
        const double exact = (g[k] - mean_g - xhat[k] * mean_gx) * inverse + widen(p.add.get()[place * s.channels() + c]);
        worst = std::fmax(worst, std::fabs(widen(found) - exact) / (1 + std::fabs(exact) + std::fabs(g[k]) * inverse));
      });
    }
  }
  for (size_t i = 0; i < y.size(); ++i) {
    worst = std::fmax(worst, std::fabs(widen(p.y.get()[i]) - y[i]) / (1 + std::fabs(y[i])));
  }
  if (!(worst <= tolerance)) std::printf("error %.3g\n", worst);
  expect(worst <= tolerance, "GroupNorm equals double arithmetic");
}

template <typename T>
void check_norm_sizes(double tolerance) {
  const struct {
    int64_t batch, first, second, height, width, groups;
  } sizes[] = {{1, 1, 0, 1, 2, 1},   {2, 15, 0, 7, 9, 3},  {1, 33, 0, 5, 13, 33}, {2, 36, 0, 4, 4, 9},
               {1, 200, 0, 2, 2, 1}, {2, 20, 4, 3, 5, 4},  {2, 64, 32, 4, 4, 8},  {1, 96, 0, 20, 20, 8},
               {3, 16, 0, 2, 6, 4},  {0, 8, 0, 2, 2, 2},   {1, 32, 0, 0, 3, 4},   {2, 128, 0, 8, 8, 32}};
  const host::Kernels* list[3];
  const int count = host::available_kernels(list);
  for (const auto& size : sizes) {
    for (const host::Resample resample : {host::kKeep, host::kUp, host::kDown}) {
      if (resample == host::kDown && (size.height % 2 || size.width % 2)) continue;
      for (const bool activate : {true, false}) {
        NormProblem<T> p({size.batch, size.first, size.second, size.height, size.width, size.groups, resample, activate,
                          kFloat32});
        p.run(*list[0], 1);
        check_group_norm(p, tolerance);
        for (int i = 0; i < count; ++i) {
          for (const int threads : {1, 4}) {
            NormProblem<T> other(p.shape);
            other.run(*list[i], threads);
            const bool same = same_bits(p.y.get(), other.y.get(), p.out * p.shape.channels()) &&
                              same_bits(p.v_x.get(), other.v_x.get(), p.in * p.shape.first) &&
                              same_bits(p.v_skip.get(), other.v_skip.get(), p.in * p.shape.second);
            expect(same, "GroupNorm has the same bits on every instruction set and number of threads");
          }
        }
      }
    }
  }
}

// SiLU and its slope over a fine grid, seen through a normalisation that changes nothing: two channels of +-1.
void check_silu() {
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  double worst = 0, worst_slope = 0;
  for (int64_t k = -40000; k <= 40000; ++k) {
    const float n = static_cast<float>(k) * 2.5e-3f, weight = 1.0f;
    const float x[2] = {-1.0f, 1.0f}, weights[2] = {0.0f, weight}, biases[2] = {0.0f, n}, v[2] = {0.0f, 1.0f};
    float y[2], v_x[2];
    const float stats[2] = {1.0f, 1.0f};  // xhat of the second channel is 0: its n is the bias
    float found[2];
    const host::GroupNormShape shape{1, 2, 0, 1, 1, 1, host::kKeep, true, kFloat32};
    const host::GroupNormArgs args{shape, x, nullptr, {nullptr, 0}, {weights, 0}, {biases, 0}, 1e-6, y, found};
    const host::GroupNormVjpArgs vjp{shape, v, x, nullptr, {nullptr, 0}, {weights, 0}, {biases, 0}, stats, nullptr, v_x, nullptr};
    host::group_norm(args, kFloat32, 1, kernels);
    host::group_norm_vjp(vjp, kFloat32, 1, kernels);
    // Forward: xhat = 1 / sqrt(1 + 1e-6), so n is a little larger than bias + 1.
    const double m = static_cast<double>(static_cast<float>(static_cast<float>(found[1]) + n));
    worst = std::fmax(worst, std::fabs(static_cast<double>(y[1]) - m / (1 + std::exp(-m))) / std::fmax(1.0, std::fabs(m)));
    // Backward: g - mean(g) - xhat mean(g xhat) = g / 2, with g the slope.
    const double sigmoid = 1 / (1 + std::exp(-static_cast<double>(n)));
    worst_slope = std::fmax(worst_slope, std::fabs(2.0 * static_cast<double>(v_x[1]) -
                                                   sigmoid * (1 + static_cast<double>(n) * (1 - sigmoid))));
  }
  std::printf("SiLU on [-100, 100]: error at most %.3g of max(1, |n|), of its slope %.3g\n", worst, worst_slope);
  expect(worst <= 1.5e-7 && worst_slope <= 4e-7, "accuracy of SiLU and its slope");
}

void check_refusals() {
  Problem<float> p(1, 1, 4, kContiguous);
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  p.step = 1;
  float out[4];
  const RowArgs row{p.inputs[0].get(), nullptr, nullptr, nullptr, nullptr, p.source(), p.table.data(), 1,
                    &p.step,           p.shape, out,     nullptr};
  expect(host::affine_row(row, kFloat32, 1, kernels) == kBadStep, "a step outside the table is refused");
  p.step = 0;
  p.table[kClipColumn] = 1;
  const RowVjpArgs vjp{out, nullptr, nullptr, nullptr, p.table.data(), 1, &p.step, 4, out, out, nullptr, nullptr};
  expect(host::affine_row_vjp(vjp, kFloat32, 1, kernels) == kNoState, "a clipping row needs the state");
  host::GroupNormArgs norm{{1, 6, 0, 1, 1, 4, host::kKeep, true, kFloat32}, out, nullptr, {}, {}, {}, 1e-6, out, out};
  expect(host::group_norm(norm, kFloat32, 1, kernels) == kBadLayout, "groups must divide the channels");
  expect(host::group_norm(norm, kFloat16, 1, kernels) == kBadDType, "float16 is refused");
  norm.shape.groups = 3;
  norm.shape.resample = host::kDown;
  expect(host::group_norm(norm, kFloat32, 1, kernels) == kBadKind, "an odd image cannot be halved");
  expect(host::find_kernels("sse9") == nullptr, "an unknown instruction set is refused");
}

}  // namespace

int main() {
  check_known_answers();
  check_normals<float>(2e-6);
  check_normals<double>(1e-14);
  const host::Kernels* list[3];
  const int count = host::available_kernels(list);
  for (int i = 0; i < count; ++i) {
    std::printf("instruction set %s\n", list[i]->name);
    check_sizes<float>(*list[i]);
    check_sizes<double>(*list[i]);
  }
  check_silu();
  check_norm_sizes<float>(2e-6);
  check_norm_sizes<uint16_t>(1.0 / 128);
  check_refusals();
  std::printf(failures == 0 ? "host_check: all passed\n" : "host_check: %d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
