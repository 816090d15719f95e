// A stand-alone check of the host's noise and row update, built with sanitizers by `make sanitize`: known answers,
// accuracy of the normals over every possible argument, equality with element-by-element loops for awkward sizes,
// guard bands.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "checking.h"
#include "fastpure/philox.h"
#include "fastpure/row.h"
#include "host/kernels.h"
#include "host/launch.h"

using namespace fastpure;
using namespace checking;

namespace {

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
  const NoiseArgs args{p.source(), out.get(), kNormal, p.shape, kDType<T>};
  expect(host::noise(args, threads, kernels) == kOk, "noise status");
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
  const DType dtype = kDType<T>;
  const RowArgs args{x,         e,  g, h, nullptr,      &p.seed,      p.ids.data(), p.draws.data(), p.table.data(),
                     &p.step, 1, 2, x_next.get(), h_next.get(), 1,            p.shape,        dtype, dtype, dtype};
  expect(host::affine_row(args, threads, kernels) == kOk, "row status");
  const RowVjpArgs vjp{g,         h,         x, e,      p.table.data(), &p.step, v_x.get(), v_e.get(),
                       v_g.get(), v_h.get(), 1, p.size, dtype,          dtype};
  expect(host::affine_row_vjp(vjp, threads, kernels) == kOk, "transposed row status");
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

void check_refusals() {
  Problem<float> p(1, 1, 4, kContiguous);
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  p.step = 1;
  float out[4];
  RowArgs row{};
  row.x = p.inputs[0].get();
  row.table = p.table.data();
  row.step = &p.step;
  row.x_next = out;
  row.rows = 1;
  row.shape = p.shape;
  expect(host::affine_row(row, 1, kernels) == kBadStep, "a step outside the table is refused");
  p.step = 0;
  p.table[kClipColumn] = 1;
  row.noise_pred = out;
  row.noise_pred_dtype = kBFloat16;
  expect(host::affine_row(row, 1, kernels) == kBadDType, "inputs narrower than the state are refused");
  const RowVjpArgs vjp{out, nullptr, nullptr, nullptr, p.table.data(), &p.step, out, out, nullptr, nullptr, 1, 4,
                       kFloat32, kFloat32};
  expect(host::affine_row_vjp(vjp, 1, kernels) == kNoState, "a clipping row needs the state");
  expect(host::find_kernels("sse9") == nullptr, "an unknown instruction set is refused");
}

}  // namespace

int main() {
  check_known_answers();
  check_normals<float>(2e-6);
  check_normals<double>(1e-14);
  const host::Kernels* list[host::kInstructionSets];
  const int count = host::available_kernels(list);
  for (int i = 0; i < count; ++i) {
    std::printf("instruction set %s\n", list[i]->name);
    check_sizes<float>(*list[i]);
    check_sizes<double>(*list[i]);
  }
  check_refusals();
  return finish("host_check");
}
