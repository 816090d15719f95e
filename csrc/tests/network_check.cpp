// A stand-alone check of networks as programs, built with sanitizers by `make sanitize`: every kind of step in both
// directions against double arithmetic, on every instruction set, and the same bits in any batch and on any number of
// threads.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <utility>
#include <vector>

#include "checking.h"
#include "host/kernels.h"
#include "host/launch.h"
#include "numbers.h"

using namespace fastpure;
using namespace checking;

namespace {

using Image = std::vector<double>;  // [H, W, C]

constexpr double kEps = 1e-6;

// ----------------------------------------------------------------------------------- in double arithmetic
// A convolution's weights [outputs, inputs, size, size].
struct Map {
  int64_t outputs = 0, inputs = 0, size = 0;
  std::vector<double> weight;

  double at(int64_t o, int64_t i, int64_t tap) const { return weight[(o * inputs + i) * size * size + tap]; }

  // Mirrored, inputs and outputs exchanged.
  Map back() const {
    Map turned{inputs, outputs, size, std::vector<double>(weight.size())};
    const int64_t taps = size * size;
    for (int64_t k = 0; k < static_cast<int64_t>(weight.size()); ++k) {
      const int64_t o = k / taps / inputs, i = k / taps % inputs, tap = k % taps;
      turned.weight[(i * outputs + o) * taps + taps - 1 - tap] = weight[k];
    }
    return turned;
  }

  Image operator()(const Image& in, int64_t height, int64_t width) const {
    Image out(height * width * outputs);
    for (int64_t p = 0; p < height * width; ++p) {
      for (int64_t tap = 0; tap < size * size; ++tap) {
        const int64_t row = p / width + tap / size - size / 2, column = p % width + tap % size - size / 2;
        if (row < 0 || row >= height || column < 0 || column >= width) continue;
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t i = 0; i < inputs; ++i) {
            out[p * outputs + o] += at(o, i, tap) * in[(row * width + column) * inputs + i];
          }
        }
      }
    }
    return out;
  }
};

Image normalised(const Image& in, int64_t channels, int64_t groups, const std::vector<double>& affine, bool activate) {
  const int64_t pixels = static_cast<int64_t>(in.size()) / channels, each = channels / groups;
  Image out(in.size());
  for (int64_t g = 0; g < groups; ++g) {
    double mean = 0, variance = 0;
    const double count = static_cast<double>(pixels * each);
    for (int64_t k = 0; k < pixels * each; ++k) mean += in[k / each * channels + g * each + k % each] / count;
    for (int64_t k = 0; k < pixels * each; ++k) {
      const double d = in[k / each * channels + g * each + k % each] - mean;
      variance += d * d / count;
    }
    for (int64_t k = 0; k < pixels * each; ++k) {
      const int64_t c = g * each + k % each, at = k / each * channels + c;
      const double n = (in[at] - mean) / std::sqrt(variance + kEps) * affine[c] + affine[channels + c];
      out[at] = activate ? n / (1 + std::exp(-n)) : n;
    }
  }
  return out;
}

Image resampled(const Image& in, int64_t width, int64_t channels, host::Resample kind) {
  if (kind == host::kKeep) return in;
  Image out(kind == host::kUp ? 4 * in.size() : in.size() / 4);
  for (int64_t k = 0; k < static_cast<int64_t>(in.size()); ++k) {
    const int64_t row = k / channels / width, column = k / channels % width, c = k % channels;
    if (kind == host::kDown) {
      out[(row / 2 * (width / 2) + column / 2) * channels + c] += in[k] / 4;
    } else {
      for (int64_t corner = 0; corner < 4; ++corner) {
        out[((2 * row + corner / 2) * 2 * width + 2 * column + corner % 2) * channels + c] = in[k];
      }
    }
  }
  return out;
}

Image attended(const Image& qkv, int64_t tokens, int64_t channels) {
  Image out(tokens * channels);
  std::vector<double> weights(tokens);
  for (int64_t q = 0; q < tokens; ++q) {
    double sum = 0;
    for (int64_t k = 0; k < tokens; ++k) {
      double dot = 0;
      for (int64_t c = 0; c < channels; ++c) dot += qkv[q * 3 * channels + c] * qkv[(3 * k + 1) * channels + c];
      sum += weights[k] = std::exp(dot / std::sqrt(static_cast<double>(channels)));
    }
    for (int64_t k = 0; k < tokens; ++k) {
      for (int64_t c = 0; c < channels; ++c) out[q * channels + c] += weights[k] / sum * qkv[(3 * k + 2) * channels + c];
    }
  }
  return out;
}

// --------------------------------------------------------------------------------------------- programs
// One step as the check knows it; -1: the image, or no skip.
struct PlainStep {
  host::StepKind kind;
  int64_t input, skip, height, width, outputs;
  host::Resample resample;
  int64_t inputs = 0, skips = 0, row = 0;
  Map first = {}, second = {}, shortcut = {};
  std::vector<double> norm = {}, second_norm = {}, first_bias = {}, second_bias = {};  // a norm: weights, then biases

  int64_t out_height() const { return resample == host::kUp ? 2 * height : resample == host::kDown ? height / 2 : height; }
  int64_t out_width() const { return resample == host::kUp ? 2 * width : resample == host::kDown ? width / 2 : width; }
  int64_t out_size() const { return out_height() * out_width() * outputs; }
  int64_t middle_size() const {
    return kind == host::kBlock ? out_size() : kind == host::kAttention ? 3 * height * width * inputs : 0;
  }
};

constexpr int64_t kGroupWidth = 4;
constexpr double kScale = 0.70710678118654752;

Image add_numbers(Image image, const double* numbers, int64_t channels) {
  for (size_t i = 0; i < image.size(); ++i) image[i] += numbers[static_cast<int64_t>(i) % channels];
  return image;
}

// A network in both forms: what the extension runs, and its definition.
template <typename T>
class Network {
 public:
  int64_t channels, height, width;
  int64_t rows = 0, tape = 0, stats = 0, cotangents = 0;
  std::vector<host::NetworkStep> program;

  Network(int64_t channels, int64_t height, int64_t width) : channels(channels), height(height), width(width) {}

  // Returns the step's number. The last one added is the network's output.
  int64_t add(host::StepKind kind, int64_t input, int64_t skip, int64_t outputs, host::Resample resample = host::kKeep) {
    const auto channels_of = [&](int64_t step) { return step < 0 ? channels : steps_[step].outputs; };
    PlainStep s{kind, input, skip, input < 0 ? height : steps_[input].out_height(),
                input < 0 ? width : steps_[input].out_width(), outputs, resample};
    s.inputs = channels_of(input);
    s.skips = skip < 0 ? 0 : channels_of(skip);
    const int64_t all = s.inputs + s.skips, mapped = kind == host::kAttention ? 3 * outputs : outputs;
    s.first = map(mapped, all, kind == host::kAttention ? 1 : 3);
    s.first_bias = numbers(mapped, 0.0f);
    if (kind != host::kConvolution) s.norm = affine(all);
    if (kind == host::kAttention) {
      s.second = map(outputs, outputs, 1);
      s.second_bias = numbers(outputs, 0.0f);
    } else if (kind == host::kBlock) {
      s.second = map(outputs, outputs, 3);
      s.second_norm = affine(outputs);
      if (all != outputs || resample != host::kKeep) s.shortcut = map(outputs, all, 1);
      s.row = rows;
      rows += 2 * outputs;
    }
    steps_.push_back(s);
    program.push_back(written(s));
    return static_cast<int64_t>(steps_.size()) - 1;
  }

  const PlainStep& last() const { return steps_.back(); }

  // Say which steps add to a cotangent that is there: all readers of an input but the last. Where the result goes.
  void close() {
    for (size_t i = 0; i < program.size(); ++i) {
      for (size_t later = i + 1; later < program.size(); ++later) {
        const bool reads = steps_[later].input == steps_[i].input || steps_[later].skip == steps_[i].input;
        if (steps_[i].input >= 0 && reads) program[i].adds = 1;
      }
    }
    program.back().output = program.back().v_output = host::kOutside;
  }

  Image operator()(const Image& x, const Image& all_rows) const {
    std::vector<Image> results;
    for (const PlainStep& s : steps_) {
      Image in = s.input < 0 ? x : results[s.input];
      if (s.skip >= 0) in = beside(in, results[s.skip], s.inputs, s.skips);
      results.push_back(result(s, in, all_rows.data() + s.row));
    }
    return results.back();
  }

 private:
  std::vector<PlainStep> steps_;
  std::deque<std::vector<T>> kept_;
  uint32_t stream_ = 100;

  static Image beside(const Image& a, const Image& b, int64_t first, int64_t second) {
    Image both;
    for (size_t p = 0; p < a.size() / first; ++p) {
      both.insert(both.end(), a.begin() + p * first, a.begin() + (p + 1) * first);
      both.insert(both.end(), b.begin() + p * second, b.begin() + (p + 1) * second);
    }
    return both;
  }

  static Image result(const PlainStep& s, const Image& in, const double* row) {
    const int64_t all = s.inputs + s.skips, height = s.out_height(), width = s.out_width();
    if (s.kind == host::kConvolution) return add_numbers(s.first(in, height, width), s.first_bias.data(), s.outputs);
    Image h = normalised(in, all, all / kGroupWidth, s.norm, s.kind != host::kAttention);
    if (s.kind == host::kHead) return add_numbers(s.first(h, height, width), s.first_bias.data(), s.outputs);
    Image past = in;
    if (s.kind == host::kAttention) {
      h = add_numbers(s.first(h, height, width), s.first_bias.data(), 3 * s.outputs);
      h = add_numbers(s.second(attended(h, height * width, s.outputs), height, width), s.second_bias.data(), s.outputs);
    } else {
      h = add_numbers(s.first(resampled(h, s.width, all, s.resample), height, width), row, s.outputs);
      h = normalised(h, s.outputs, s.outputs / kGroupWidth, s.second_norm, true);
      h = add_numbers(s.second(h, height, width), row + s.outputs, s.outputs);
      past = resampled(past, s.width, all, s.resample);
      if (s.shortcut.size > 0) past = s.shortcut(past, height, width);
    }
    for (size_t i = 0; i < h.size(); ++i) h[i] = (h[i] + past[i]) * kScale;
    return h;
  }

  std::vector<double> numbers(int64_t count, float around, float spread = 0.3f) {
    std::vector<float> made(count);
    fill(made.data(), count, stream_++, spread);
    std::vector<double> rounded;
    for (const float z : made) rounded.push_back(widen(narrow<T>(z + around)));
    return rounded;
  }

  Map map(int64_t outputs, int64_t inputs, int64_t size) {
    const double spread = 1 / std::sqrt(static_cast<double>(inputs * size * size));
    return {outputs, inputs, size, numbers(outputs * inputs * size * size, 0.0f, static_cast<float>(spread))};
  }

  std::vector<double> affine(int64_t count) {
    std::vector<double> weight = numbers(count, 1.0f), bias = numbers(count, 0.0f);
    weight.insert(weight.end(), bias.begin(), bias.end());
    return weight;
  }

  const void* keep(std::vector<T> values) { return kept_.emplace_back(std::move(values)).data(); }

  const void* keep(const double* from, int64_t count) {
    std::vector<T> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(narrow<T>(static_cast<float>(from[i])));
    return count > 0 ? keep(std::move(values)) : nullptr;
  }

  // [outputs in blocks of 32 or 16][size size][inputs / unit][block][unit]
  const void* packed(const Map& map) {
    if (map.size == 0) return nullptr;
    const int64_t block = map.outputs % 32 == 0 ? 32 : 16, unit = 4 / static_cast<int64_t>(sizeof(T));
    const int64_t units = (map.inputs + unit - 1) / unit, taps = map.size * map.size;
    std::vector<T> to((map.outputs + block - 1) / block * block * taps * units * unit);
    for (int64_t o = 0; o < map.outputs; ++o) {
      for (int64_t i = 0; i < map.inputs; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t place = ((o / block * taps + tap) * units + i / unit) * block + o % block;
          to[place * unit + i % unit] = narrow<T>(static_cast<float>(map.at(o, i, tap)));
        }
      }
    }
    return keep(std::move(to));
  }

  const void* packed_back(const Map& map) { return map.size == 0 ? nullptr : packed(map.back()); }

  int64_t place(int64_t& end, int64_t size) {
    const int64_t begin = end;
    end += (size + 31) / 32 * 32;
    return begin;
  }

  host::NetworkStep written(const PlainStep& s) {
    const int64_t all = s.inputs + s.skips;
    host::NetworkStep to{};
    to.kind = s.kind;
    to.input = s.input < 0 ? host::kOutside : program[s.input].output;
    to.skip = s.skip < 0 ? host::kAbsent : program[s.skip].output;
    to.v_input = s.input < 0 ? host::kOutside : program[s.input].v_output;
    to.v_skip = s.skip < 0 ? host::kAbsent : program[s.skip].v_output;
    to.output = place(tape, s.out_size());
    to.middle = place(tape, s.middle_size());
    to.v_output = place(cotangents, s.out_size());
    to.height = s.height;
    to.width = s.width;
    to.inputs = s.inputs;
    to.skips = s.skips;
    to.outputs = s.outputs;
    to.resample = s.resample;
    to.groups = s.norm.empty() ? 1 : all / kGroupWidth;
    to.second_groups = s.second_norm.empty() ? 1 : s.outputs / kGroupWidth;
    to.eps = kEps;
    to.scale = kScale;
    to.row = s.row;
    to.stats = place(stats, 2 * to.groups);
    to.second_stats = place(stats, 2 * to.second_groups);
    to.norm_weight = keep(s.norm.data(), static_cast<int64_t>(s.norm.size()) / 2);
    to.norm_bias = keep(s.norm.data() + s.norm.size() / 2, static_cast<int64_t>(s.norm.size()) / 2);
    to.second_norm_weight = keep(s.second_norm.data(), static_cast<int64_t>(s.second_norm.size()) / 2);
    to.second_norm_bias = keep(s.second_norm.data() + s.second_norm.size() / 2, static_cast<int64_t>(s.second_norm.size()) / 2);
    to.first = packed(s.first);
    to.second = packed(s.second);
    to.shortcut = packed(s.shortcut);
    to.first_back = packed_back(s.first);
    to.second_back = packed_back(s.second);
    to.shortcut_back = packed_back(s.shortcut);
    to.first_bias = s.kind == host::kBlock ? nullptr : keep(s.first_bias.data(), static_cast<int64_t>(s.first_bias.size()));
    to.second_bias = keep(s.second_bias.data(), static_cast<int64_t>(s.second_bias.size()));
    return to;
  }
};

// ----------------------------------------------------------------------------------------------- running
// Output and cotangent for images [first, first + batch) of an endless sequence.
template <typename T>
struct Pass {
  int64_t batch, in, out;
  Guarded<T> x, rows, v, y, v_x;

  Pass(const Network<T>& network, int64_t first, int64_t batch, const host::Kernels& kernels, int threads, bool shared)
      : batch(batch), in(network.height * network.width * network.channels), out(network.last().out_size()),
        x(batch * in), rows((shared ? 1 : batch) * network.rows), v(batch * out), y(batch * out), v_x(batch * in) {
    for (int64_t b = 0; b < batch; ++b) {
      const auto stream = static_cast<uint32_t>(3 * (first + b));
      fill(x.get() + b * in, in, stream);
      if (!shared || b == 0) fill(rows.get() + b * network.rows, network.rows, shared ? 1 : stream + 1, 0.3f);
      fill(v.get() + b * out, out, stream + 2);
    }
    Guarded<T> tape(batch * network.tape), alone(batch * out);
    Guarded<float> stats(batch * network.stats);
    const host::NetworkLayout layout{batch,         static_cast<int64_t>(network.program.size()),
                                     shared ? 0 : network.rows, network.tape, network.stats, network.cotangents,
                                     in,            out, dtype_of<T>()};
    host::NetworkArgs args{x.get(), rows.get(), network.program.data(), y.get(), tape.get(), stats.get(), layout};
    expect(host::network(args, threads, kernels) == kOk, "network status");
    const Guarded<T> kept = tape;
    const host::NetworkVjpArgs vjp{v.get(), rows.get(), network.program.data(), tape.get(), stats.get(), v_x.get(), layout};
    expect(host::network_vjp(vjp, threads, kernels) == kOk, "transposed network status");
    expect(same_bits(tape.get(), Guarded<T>(kept).get(), batch * network.tape), "the transpose leaves the tape alone");
    expect(y.intact() && v_x.intact() && tape.intact() && stats.intact(), "a network writes only its outputs");
    args.out = alone.get();
    args.tape = nullptr;
    args.stats = nullptr;
    expect(host::network(args, threads, kernels) == kOk, "network status");
    expect(same_bits(alone.get(), y.get(), batch * out), "a network has the same bits with a tape and without");
  }
};

template <typename T>
Image widened(const T* from, int64_t count) {
  Image wide;
  for (int64_t i = 0; i < count; ++i) wide.push_back(widen(from[i]));
  return wide;
}

double dot(const Image& a, const Image& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The output in double arithmetic; the cotangent seen from random directions, by differences there.
template <typename T>
void check_against_double(const Network<T>& network, Pass<T>& pass, const char* what, double tolerance) {
  const Image x = widened(pass.x.get(), pass.in), rows = widened(pass.rows.get(), network.rows);
  const Image v = widened(pass.v.get(), pass.out), y = widened(pass.y.get(), pass.out), v_x = widened(pass.v_x.get(), pass.in);
  const Image exact = network(x, rows);
  double largest = 0, error = 0, slope_error = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    largest = std::fmax(largest, std::fabs(exact[i]));
    error = !(std::fabs(y[i] - exact[i]) <= error) ? std::fabs(y[i] - exact[i]) : error;
  }
  const double h = 1e-5;
  for (uint32_t direction = 0; direction < 3; ++direction) {
    std::vector<float> numbers(x.size());
    fill(numbers.data(), pass.in, 1000 + direction);
    const Image u = widened(numbers.data(), pass.in);
    Image ahead = x, behind = x;
    for (size_t i = 0; i < u.size(); ++i) {
      ahead[i] += h * u[i];
      behind[i] -= h * u[i];
    }
    const double slope = (dot(v, network(ahead, rows)) - dot(v, network(behind, rows))) / (2 * h);
    const double off = std::fabs(dot(v_x, u) - slope) / std::sqrt(dot(v_x, v_x));
    slope_error = !(off <= slope_error) ? off : slope_error;
  }
  if (!(error <= tolerance * largest && slope_error <= 4 * tolerance)) {
    std::printf("%s: output off by %.3g of %.3g, slope by %.3g\n", what, error, largest, slope_error);
    expect(false, "a network equals double arithmetic");
  }
}

template <typename T>
void check(Network<T>& network, const char* what) {
  network.close();
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 0.04;
  everywhere([&](const host::Kernels& kernels, int threads) {
    Pass<T> alone(network, 7, 1, kernels, 1, false), batch(network, 5, 5, kernels, threads, false);
    if (threads == 1) check_against_double(network, alone, what, tolerance);
    expect(same_bits(alone.y.get(), batch.y.get() + 2 * alone.out, alone.out) &&
               same_bits(alone.v_x.get(), batch.v_x.get() + 2 * alone.in, alone.in),
           "a sample has the same bits in any batch and on any number of threads");
    Pass<T> shared(network, 5, 2, kernels, threads, true);
    if (threads == 1) check_against_double(network, shared, what, tolerance);
  });
}

template <typename T>
void check_convolutions() {
  for (const int64_t inputs : {1, 3, 16, 48}) {
    for (const int64_t outputs : {1, 3, 16, 32, 48}) {
      Network<T> network(inputs, 3, 5);
      network.add(host::kConvolution, -1, -1, outputs);
      check(network, "convolution");
    }
  }
}

template <typename T>
void check_networks() {
  const struct {
    int64_t channels, height, width, first, second;
  } sizes[] = {{1, 4, 4, 16, 32}, {3, 8, 8, 32, 16}, {2, 6, 10, 48, 32}, {3, 2, 16, 16, 16}};
  for (const auto& s : sizes) {
    for (const host::Resample resample : {host::kKeep, host::kUp, host::kDown}) {
      Network<T> network(s.channels, s.height, s.width);
      const int64_t entry = network.add(host::kConvolution, -1, -1, s.first);
      int64_t h = network.add(host::kBlock, entry, -1, s.second);
      if (s.height * s.width % 16 == 0) h = network.add(host::kAttention, h, -1, s.second);
      h = network.add(host::kBlock, h, entry, s.first);
      h = network.add(host::kBlock, h, -1, s.first, resample);
      network.add(host::kHead, h, -1, s.channels);
      check(network, resample == host::kUp ? "doubled" : resample == host::kDown ? "halved" : "network");
    }
  }
}

void check_refusals() {
  const host::Kernels& kernels = *host::find_kernels(nullptr);
  host::NetworkArgs args{};
  args.layout.steps = 1;
  args.layout.dtype = kFloat64;
  expect(host::network(args, 1, kernels) == kBadDType, "float64 is refused");
  args.layout.dtype = kFloat32;
  expect(host::network(args, 1, kernels) == kOk, "no sample, no work");
  args.layout.steps = 0;
  expect(host::network(args, 1, kernels) == kBadLayout, "a program has steps");
}

}  // namespace

int main() {
  check_convolutions<float>();
  check_convolutions<uint16_t>();
  check_networks<float>();
  check_networks<uint16_t>();
  check_refusals();
  return finish("network_check");
}
