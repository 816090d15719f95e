// A stand-alone check of the host's GroupNorm+SiLU, built with sanitizers by `make sanitize`: both directions against
// double arithmetic, sums, and the accuracy of SiLU and of the statistics; the same bits from every instruction
// set that multiplies and adds in one.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cstdio>
#include <limits>
#include <vector>

#include "checking.h"
#include "host/kernels.h"
#include "host/launch.h"
#include "numbers.h"

using namespace fastpure;
using namespace checking;

namespace {

constexpr double kEps = 1e-6, kScale = 0.75;

// One call of both directions; outputs lie between poisoned bands.
template <typename T>
struct NormProblem {
  host::GroupNormShape shape;
  int64_t in, out;
  Guarded<T> x, skip, plus, row, vectors, v, add, more;
  Guarded<T> y, total, v_x, v_skip;
  Guarded<float> stats;

  explicit NormProblem(const host::GroupNormShape& s)
      : shape(s),
        in(s.batch * s.pixels()),
        out(s.resample == host::kUp ? 4 * in : s.resample == host::kDown ? in / 4 : in),
        x(normal<T>(in * s.first, 0)), skip(normal<T>(in * s.second, 1)), plus(normal<T>(in * s.first, 2)),
        row(normal<T>(s.batch * s.first, 3)), vectors(normal<T>(2 * s.batch * s.channels(), 4)),
        v(normal<T>(out * s.channels(), 5)), add(normal<T>(in * s.channels(), 6)), more(normal<T>(in * s.first, 7)),
        y(out * s.channels()), total(in * s.first), v_x(in * s.first), v_skip(in * s.second),
        stats(2 * s.batch * s.groups) {
    shape.vectors = dtype_of<T>();
  }

  double vector_at(int which, int64_t sample, int64_t channel) {
    return widen(vectors.get()[(which * shape.batch + sample) * shape.channels() + channel]);
  }

  // The normalised input: [x + row, skip].
  double input_at(int64_t sample, int64_t pixel, int64_t c) {
    const int64_t place = sample * shape.pixels() + pixel;
    return c < shape.first ? widen(x.get()[place * shape.first + c]) + widen(row.get()[sample * shape.first + c])
                           : widen(skip.get()[place * shape.second + c - shape.first]);
  }

  // The other cotangents of the input, and what their sum with its own is multiplied with.
  double others_at(int64_t place, int64_t c) {
    const double added = widen(add.get()[place * shape.channels() + c]);
    return c < shape.first ? added + widen(more.get()[place * shape.first + c]) : added;
  }
  double scale_at(int64_t c) const { return c < shape.first ? kScale : 1.0; }

  host::GroupNormArgs arguments() {
    const host::GroupNormShape& s = shape;
    const T* weight = vectors.get();
    return {x.get(),    skip.get(), row.get(), weight,      weight + s.batch * s.channels(),
            s.groups,   kEps,       s.resample, s.activate, y.get(),
            stats.get(), nullptr,   1.0,       nullptr,
            {s.batch, s.first, s.second, s.height, s.width, s.first, s.channels(), s.channels(), s.vectors, dtype_of<T>()}};
  }

  void run(const host::Kernels& kernels, int threads) {
    const host::GroupNormArgs args = arguments();
    expect(host::group_norm(args, threads, kernels) == kOk, "GroupNorm status");
    const host::GroupNormVjpArgs vjp{v.get(),       args.x,     args.skip,  args.row,      args.weight,  args.bias,
                                     stats.get(),   args.groups, args.resample, args.activate, add.get(), v_x.get(),
                                     v_skip.get(),  more.get(), kScale,     args.layout};
    expect(host::group_norm_vjp(vjp, threads, kernels) == kOk, "transposed GroupNorm status");
    expect(y.intact() && v_x.intact() && v_skip.intact() && stats.intact(), "GroupNorm writes only its outputs");
  }

  bool equals(NormProblem& other) {
    return same_bits(y.get(), other.y.get(), out * shape.channels()) &&
           same_bits(v_x.get(), other.v_x.get(), in * shape.first) &&
           same_bits(v_skip.get(), other.v_skip.get(), in * shape.second) &&
           same_bits(stats.get(), other.stats.get(), 2 * shape.batch * shape.groups);
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
      const double inverse = 1 / std::sqrt(variance + kEps);
      each([&](int64_t k, int64_t pixel, int64_t c) {
        xhat[k] = (p.input_at(b, pixel, c) - mean) * inverse;
        const double n = xhat[k] * p.vector_at(0, b, c) + p.vector_at(1, b, c), sigmoid = 1 / (1 + std::exp(-n));
        double cotangent = 0;
        for (const int64_t place : p.places(b, pixel)) {
          y[place * s.channels() + c] += p.weight_of_place() * (s.activate ? n * sigmoid : n);
          cotangent += p.weight_of_place() * widen(p.v.get()[place * s.channels() + c]);
        }
        g[k] = cotangent * (s.activate ? sigmoid * (1 + n * (1 - sigmoid)) : 1.0) * p.vector_at(0, b, c);
        mean_g += g[k] / count;
        mean_gx += g[k] * xhat[k] / count;
      });
      each([&](int64_t k, int64_t pixel, int64_t c) {
        const int64_t place = b * s.pixels() + pixel;
        const T found = c < s.first ? p.v_x.get()[place * s.first + c] : p.v_skip.get()[place * s.second + c - s.first];
        const double own = (g[k] - mean_g - xhat[k] * mean_gx) * inverse, exact = (own + p.others_at(place, c)) * p.scale_at(c);
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

// Added up on the way or beforehand: the same bits.
template <typename T>
void check_sum(const host::GroupNormShape& s) {
  everywhere([&](const host::Kernels& kernels, int threads) {
    NormProblem<T> before(s), inside(s);
    const host::ResidualArgs sum{before.x.get(),      before.plus.get(), before.row.get(), kScale,
                                 before.total.get(),  s.batch,           s.first,          s.pixels(),
                                 s.first,             dtype_of<T>(),     dtype_of<T>()};
    expect(host::residual_add(sum, 1, kernels) == kOk, "sum status");
    host::GroupNormArgs args = before.arguments();
    args.x = before.total.get();
    args.row = nullptr;
    expect(host::group_norm(args, 1, kernels) == kOk, "GroupNorm status");
    args = inside.arguments();
    args.plus = inside.plus.get();
    args.scale = kScale;
    args.total = inside.total.get();
    expect(host::group_norm(args, threads, kernels) == kOk, "GroupNorm status");
    expect(inside.equals(before) && same_bits(inside.total.get(), before.total.get(), inside.in * s.first),
           "a sum inside GroupNorm has the bits of a sum before it");
    expect(inside.total.intact() && inside.y.intact(), "GroupNorm of a sum writes only its outputs");
  });
}

template <typename T>
void check_norm_sizes(double tolerance) {
  const struct {
    int64_t batch, first, second, height, width, groups;
  } sizes[] = {{1, 1, 0, 1, 2, 1},   {2, 15, 0, 7, 9, 3},  {1, 33, 0, 5, 13, 33}, {2, 36, 0, 4, 4, 9},
               {1, 200, 0, 2, 2, 1}, {2, 20, 4, 3, 5, 4},  {2, 64, 32, 4, 4, 8},  {1, 96, 0, 20, 20, 8},
               {3, 16, 0, 2, 6, 4},  {0, 8, 0, 2, 2, 2},   {1, 32, 0, 0, 3, 4},   {2, 128, 0, 8, 8, 32}};
  for (const auto& size : sizes) {
    for (const host::Resample resample : {host::kKeep, host::kUp, host::kDown}) {
      if (resample == host::kDown && (size.height % 2 || size.width % 2)) continue;
      for (const bool activate : {true, false}) {
        NormProblem<T> p({size.batch, size.first, size.second, size.height, size.width, size.groups, resample, activate,
                          kFloat32});
        p.run(*host::find_kernels(nullptr), 1);
        check_group_norm(p, tolerance);
        everywhere([&](const host::Kernels& kernels, int threads) {
          NormProblem<T> other(p.shape), alone(p.shape);
          other.run(kernels, threads);
          if (std::strcmp(kernels.name, "baseline") == 0) {  // which rounds after every multiplication
            alone.run(kernels, 1);
            check_group_norm(other, tolerance);
            return expect(alone.equals(other), "GroupNorm has the same bits on any number of threads");
          }
          expect(p.equals(other), "GroupNorm has the same bits on every instruction set and number of threads");
        });
        check_sum<T>(p.shape);
      }
    }
  }
}

// SiLU of many numbers and its slope there, seen through normalisations that change nothing.
struct SeenThrough {
  std::vector<float> value, slope;

  explicit SeenThrough(const std::vector<float>& n, const host::Kernels& kernels) {
    const auto count = static_cast<int64_t>(n.size());
    // Every channel is a group of two pixels, 0 and 0, and its bias is n. Of v = (1, 0) one half comes back.
    const host::GroupNormLayout layout{1, count, 0, 1, 2, 0, 0, 0, kFloat32, kFloat32};
    std::vector<float> zeros(2 * count), ones(count, 1.0f), v(2 * count), stats(2 * count), y(2 * count), v_x(2 * count);
    for (int64_t i = 0; i < count; ++i) v[i] = stats[2 * i + 1] = 1.0f;
    const host::GroupNormVjpArgs vjp{v.data(), zeros.data(), nullptr,     nullptr, ones.data(), n.data(), stats.data(),
                                     count,    host::kKeep,  1,           nullptr, v_x.data(),  nullptr,  nullptr,
                                     2.0,      layout};
    expect(host::group_norm_vjp(vjp, 1, kernels) == kOk, "transposed GroupNorm status");
    const host::GroupNormArgs args{zeros.data(), nullptr,  nullptr,      ones.data(), n.data(), count, kEps,
                                   host::kKeep,  1,        y.data(),     stats.data(), nullptr, 1.0,   nullptr, layout};
    expect(host::group_norm(args, 1, kernels) == kOk, "GroupNorm status");
    value.assign(y.begin(), y.begin() + count);
    slope.assign(v_x.begin(), v_x.begin() + count);
  }
};

// Within two units in the last place from -88 to 88, except around -17: there exp(-n) is 2^24 and more, 1 + exp(-n) falls
// between two floats, and half a unit more is lost even if all else is exact. The slope, which vanishes at -1.28, is
// held to an absolute error.
void check_silu() {
  std::vector<float> n;
  for (int64_t k = -352000; k <= 352000; ++k) n.push_back(static_cast<float>(k) * 2.5e-4f);
  for (float small = 1.0f; small > 1e-38f; small *= 0.71f) n.insert(n.end(), {small, -small});
  const SeenThrough seen(n, *host::find_kernels(nullptr));
  double worst = 0, worst_near_17 = 0, worst_slope = 0;
  for (size_t i = 0; i < n.size(); ++i) {
    const double x = static_cast<double>(n[i]), z = std::exp(-x), sigmoid = 1 / (1 + z);
    const double off = units_off(seen.value[i], x / (1 + z));
    (std::fabs(x + 17) < 0.5 ? worst_near_17 : worst) = std::fmax(std::fabs(x + 17) < 0.5 ? worst_near_17 : worst, off);
    const double slope = sigmoid * (1 + x * (z * sigmoid));
    worst_slope = std::fmax(worst_slope, std::fabs(static_cast<double>(seen.slope[i]) - slope));
  }
  std::printf("SiLU on [-88, 88]: %.2f units in the last place (around -17: %.2f); its slope: %.2g\n", worst,
              worst_near_17, worst_slope);
  expect(worst <= 2.0 && worst_near_17 <= 2.5 && worst_slope <= 2.5e-7, "accuracy of SiLU and its slope");

  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  everywhere([&](const host::Kernels& kernels, int) {
    const SeenThrough far({1e38f, inf, -100.0f, -1e38f, -inf, nan}, kernels);
    const float tiny = 1e-36f;
    expect(far.value[0] == 1e38f && far.value[1] == inf && far.value[5] != far.value[5], "SiLU of large numbers and NaN");
    expect(far.slope[0] == 1.0f && far.slope[1] == 1.0f && far.slope[5] != far.slope[5], "slope at large numbers and NaN");
    for (int i = 2; i < 5; ++i) {
      expect(std::fabs(far.value[i]) < tiny && std::fabs(far.slope[i]) < tiny, "SiLU and its slope vanish at the left");
    }
  });
}

// Mean and spread of images that are hard on sums: little variance on a large mean, and pixels at the beginning, where a
// pivot might be looked for, that are like no others.
void check_statistics() {
  constexpr int64_t kPixels = 256 * 256, kChannels = 4;
  const struct {
    float mean, spread, first;
    const char* what;
  } images[] = {{0.0f, 1.0f, 0.0f, "plain"},         {1e3f, 1.0f, 0.0f, "large mean"}, {1e3f, 0.01f, 0.0f, "little variance"},
                {0.0f, 1e-3f, 1.0f, "other border"}, {-50.0f, 0.1f, 40.0f, "other border, large mean"}};
  for (const auto& image : images) {
    Guarded<float> x = normal<float>(kPixels * kChannels, 1, image.spread);
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < kPixels * kChannels; ++i) {
      x.get()[i] += i < 256 * kChannels ? image.mean + image.first : image.mean;
      mean += static_cast<double>(x.get()[i]) / static_cast<double>(kPixels * kChannels);
    }
    for (int64_t i = 0; i < kPixels * kChannels; ++i) {
      const double d = static_cast<double>(x.get()[i]) - mean;
      variance += d * d / static_cast<double>(kPixels * kChannels);
    }
    std::vector<float> y(kPixels * kChannels);
    float stats[2];
    const host::GroupNormArgs args{x.get(), nullptr, nullptr, nullptr, nullptr, 1, kEps, host::kKeep, 0, y.data(), stats,
                                   nullptr, 1.0, nullptr,
                                   {1, kChannels, 0, 256, 256, 0, 0, 0, kFloat32, kFloat32}};
    expect(host::group_norm(args, 1, *host::find_kernels(nullptr)) == kOk, "GroupNorm status");
    const double of_mean = std::fabs(static_cast<double>(stats[0]) - mean) / std::fmax(std::sqrt(variance), std::fabs(mean));
    const double of_spread = std::fabs(static_cast<double>(stats[1]) * std::sqrt(variance + kEps) - 1);
    std::printf("statistics, %s: mean off by %.2g, spread by %.2g\n", image.what, of_mean, of_spread);
    expect(of_mean <= 1e-7 && of_spread <= 1e-6, "statistics equal those in double arithmetic");
  }
}

void check_refusals() {
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  float out[4];
  host::GroupNormArgs norm{out, nullptr, nullptr, nullptr, nullptr, 4,       kEps, host::kKeep, 1,
                           out, out,     nullptr, 1.0,     nullptr, {1, 6, 0, 1, 1, 0, 0, 0, kFloat32, kFloat32}};
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
  check_statistics();
  check_norm_sizes<float>(2e-6);
  check_norm_sizes<uint16_t>(1.0 / 128);
  check_refusals();
  return finish("group_norm_check");
}
