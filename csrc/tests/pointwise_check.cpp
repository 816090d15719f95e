// A stand-alone check of the host's resampling and block ends, built with sanitizers by `make sanitize`: against double
// arithmetic, with the same bits from every instruction set and number of threads.
#include <cmath>
#include <cstdint>

#include "checking.h"
#include "host/kernels.h"
#include "host/launch.h"
#include "numbers.h"

using namespace fastpure;
using namespace checking;

namespace {

const struct {
  int64_t batch, channels, height, width;  // of the smaller image
} kSizes[] = {{1, 1, 1, 1}, {2, 3, 2, 5}, {1, 16, 3, 4}, {2, 32, 4, 4}, {1, 48, 9, 8}, {1, 83, 2, 3}, {0, 4, 2, 2}};

// Off by more than a rounding to T.
template <typename T>
bool is_off(T found, double exact) {
  return std::fabs(widen(found) - exact) > (sizeof(T) == 4 ? 5e-7 : 1.0 / 200) * (1 + std::fabs(exact));
}

template <typename T>
void check_resampling() {
  for (const auto& s : kSizes) {
    const int64_t small = s.batch * s.height * s.width * s.channels;
    for (const bool spread : {true, false}) {
      const int64_t count = spread ? 4 * small : small;
      Guarded<T> x = normal<T>(spread ? small : 4 * small, 1), first(count);
      everywhere([&](const host::Kernels& kernels, int threads) {
        Guarded<T> out(count);
        const host::ResampleArgs args{x.get(), spread, 0.25, out.get(), s.batch, s.channels, s.height, s.width,
                                      dtype_of<T>()};
        expect(host::resample(args, threads, kernels) == kOk, "resampling status");
        expect(out.intact(), "resampling writes only its output");
        if (&kernels == host::find_kernels(nullptr) && threads == 1) std::memcpy(first.get(), out.get(), count * sizeof(T));
        expect(same_bits(out.get(), first.get(), count), "resampling has the same bits everywhere");
      });
      int64_t off = 0;
      for (int64_t row = 0; row < s.batch * s.height; ++row) {
        for (int64_t i = 0; i < s.width * s.channels; ++i) {
          const int64_t column = i / s.channels, c = i % s.channels, one = row * s.width * s.channels + i;
          double sum = 0;
          for (int64_t corner = 0; corner < 4; ++corner) {
            const int64_t at = ((2 * row + corner / 2) * 2 * s.width + 2 * column + corner % 2) * s.channels + c;
            if (spread) off += is_off(first.get()[at], 0.25 * widen(x.get()[one]));
            if (!spread) sum += widen(x.get()[at]);
          }
          if (!spread) off += is_off(first.get()[one], 0.25 * sum);
        }
      }
      expect(off == 0, "resampling equals double arithmetic");
    }
  }
}

template <typename T>
void check_block_ends() {
  for (const auto& s : kSizes) {
    const int64_t pixels = s.height * s.width * 4, count = s.batch * pixels * s.channels;
    for (const int64_t stride : {int64_t{0}, s.channels}) {
      Guarded<T> a = normal<T>(count, 1), b = normal<T>(count, 2), bias = normal<T>(s.batch * s.channels, 3), first(count);
      everywhere([&](const host::Kernels& kernels, int threads) {
        Guarded<T> out(count);
        const host::ResidualArgs args{a.get(),    b.get(),    bias.get(), 0.7,    out.get(),     s.batch,
                                      s.channels, pixels,     stride,     dtype_of<T>(), dtype_of<T>()};
        expect(host::residual_add(args, threads, kernels) == kOk, "sum status");
        expect(out.intact(), "a sum writes only its output");
        if (&kernels == host::find_kernels(nullptr) && threads == 1) std::memcpy(first.get(), out.get(), count * sizeof(T));
        expect(same_bits(out.get(), first.get(), count), "sums have the same bits everywhere");
      });
      int64_t off = 0;
      for (int64_t i = 0; i < count; ++i) {
        const double shift = widen(bias.get()[i / (pixels * s.channels) * stride + i % s.channels]);
        off += is_off(first.get()[i], (widen(a.get()[i]) + widen(b.get()[i]) + shift) * 0.7);
      }
      expect(off == 0, "sums equal double arithmetic");
    }
  }
}

}  // namespace

int main() {
  check_resampling<float>();
  check_resampling<uint16_t>();
  check_block_ends<float>();
  check_block_ends<uint16_t>();
  return finish("pointwise_check");
}
