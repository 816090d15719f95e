// A stand-alone check of the host's GroupNorm+SiLU, built with sanitizers by `make sanitize`: both directions against
// double arithmetic, with the same bits from every instruction set, and the accuracy of SiLU over a fine grid.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "checking.h"
#include "fastpure/philox.h"
#include "host/kernels.h"
#include "host/launch.h"

using namespace fastpure;
using namespace checking;

namespace {

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

// The vectors of every sample `stride` numbers apart.
host::GroupNormLayout layout_of(const host::GroupNormShape& s, int64_t stride, DType dtype) {
  return {s.batch, s.first, s.second, s.height, s.width, stride, stride, stride, s.vectors, dtype};
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

  const T* vector(int which) { return vectors.get() + which * shape.batch * shape.channels(); }

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
    const host::GroupNormShape& s = shape;
    const host::GroupNormLayout layout = layout_of(s, s.channels(), dtype);
    const host::GroupNormArgs args{x.get(),    skip.get(), vector(0),  vector(1), vector(2),   s.groups,
                                   1e-6,       s.resample, s.activate, y.get(),   stats.get(), layout};
    expect(host::group_norm(args, threads, kernels) == kOk, "GroupNorm status");
    const host::GroupNormVjpArgs vjp{v.get(),   x.get(),     skip.get(), vector(0),  vector(1),
                                     vector(2), stats.get(), s.groups,   s.resample, s.activate,
                                     add.get(), v_x.get(),   v_skip.get(), layout};
    expect(host::group_norm_vjp(vjp, threads, kernels) == kOk, "transposed GroupNorm status");
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
  const host::Kernels* list[host::kInstructionSets];
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
    const host::GroupNormLayout layout = layout_of(shape, 0, kFloat32);
    const host::GroupNormArgs args{x, nullptr, nullptr, weights, biases, 1, 1e-6, host::kKeep, 1, y, found, layout};
    const host::GroupNormVjpArgs vjp{v, x,           nullptr, nullptr, weights, biases,  stats,
                                     1, host::kKeep, 1,       nullptr, v_x,     nullptr, layout};
    host::group_norm(args, 1, kernels);
    host::group_norm_vjp(vjp, 1, kernels);
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
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  float out[4];
  const host::GroupNormLayout layout{1, 6, 0, 1, 1, 0, 0, 0, kFloat32, kFloat32};
  host::GroupNormArgs norm{out, nullptr, nullptr, nullptr, nullptr, 4, 1e-6, host::kKeep, 1, out, out, layout};
  expect(host::group_norm(norm, 1, kernels) == kBadLayout, "groups must divide the channels");
  norm.groups = 3;
  norm.layout.dtype = kFloat16;
  expect(host::group_norm(norm, 1, kernels) == kBadDType, "float16 is refused");
  norm.layout.dtype = kFloat32;
  norm.resample = host::kDown;
  expect(host::group_norm(norm, 1, kernels) == kBadKind, "an odd image cannot be halved");
}

}  // namespace

int main() {
  check_silu();
  check_norm_sizes<float>(2e-6);
  check_norm_sizes<uint16_t>(1.0 / 128);
  check_refusals();
  return finish("group_norm_check");
}
