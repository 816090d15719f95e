// The CUDA kernels without a device: what each of their threads does is plain code, so all threads are run here one
// after the other, under sanitizers (`make sanitize`), and compared bit by bit with the host kernels. What is left to
// a real device is the launch and the compiler's work.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "checking.h"
#include "cuda/plan.h"
#include "cuda/threads.h"
#include "host/kernels.h"
#include "host/launch.h"

using namespace fastpure;
using namespace checking;

namespace {

// Exactly `size` elements on the heap, `offset` elements after a multiple of 64 bytes: whatever touches memory beyond
// them, or takes more from an address than its alignment allows, is stopped by the sanitizers.
template <typename T>
class Array {
 public:
  Array(int64_t size, int64_t offset) : size_(size), offset_(offset) {
    const size_t bytes = static_cast<size_t>(size + offset) * sizeof(T);
    if (posix_memalign(&memory_, 64, bytes == 0 ? 1 : bytes) != 0) std::abort();
    std::memset(memory_, 0, bytes);
  }
  ~Array() { std::free(memory_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* get() const { return static_cast<T*>(memory_) + offset_; }
  bool operator==(const Array& other) const {  // same bits, except that 0 and -0 are the same
    for (int64_t i = 0; i < size_; ++i) {
      const T a = get()[i], b = other.get()[i];
      if (std::memcmp(&a, &b, sizeof(T)) != 0 && !(a == b)) return false;
    }
    return true;
  }

 private:
  int64_t size_, offset_;
  void* memory_ = nullptr;
};

template <typename T>
constexpr DType kState = sizeof(T) == 4 ? kFloat32 : kFloat64;

// Calls body(index) for every thread that has work, with the access of the plan as a constant.
template <typename Body>
void run_threads(const cuda::Plan& plan, const Body& body) {
  for (uint32_t i = 0; i < plan.cut.total; ++i) body(i);
}

template <typename T>
void run(const NoiseArgs& args, const cuda::Plan& plan) {
  run_threads(plan, [&](uint32_t i) {
    switch (plan.access) {
      case cuda::Access::kVector: return cuda::noise_thread<T, cuda::Access::kVector>(args, plan.cut, i);
      case cuda::Access::kScalar: return cuda::noise_thread<T, cuda::Access::kScalar>(args, plan.cut, i);
      case cuda::Access::kStrided: return cuda::noise_thread<T, cuda::Access::kStrided>(args, plan.cut, i);
    }
  });
}

template <typename T>
void run(const RowArgs& args, const cuda::Plan& plan) {
  run_threads(plan, [&](uint32_t i) {
    switch (plan.access) {
      case cuda::Access::kVector: return cuda::row_thread<T, cuda::Access::kVector>(args, plan.cut, i);
      case cuda::Access::kScalar: return cuda::row_thread<T, cuda::Access::kScalar>(args, plan.cut, i);
      case cuda::Access::kStrided: return cuda::row_thread<T, cuda::Access::kStrided>(args, plan.cut, i);
    }
  });
}

template <typename T>
void run(const RowVjpArgs& args, const cuda::Plan& plan) {
  run_threads(plan, [&](uint32_t i) {
    if (plan.access == cuda::Access::kVector) {
      cuda::vjp_thread<T, cuda::Access::kVector>(args, plan.cut, i);
    } else {
      cuda::vjp_thread<T, cuda::Access::kScalar>(args, plan.cut, i);
    }
  });
}

int accesses_seen[3] = {};

template <typename T>
struct Problem {
  Problem(const BatchShape& s, int64_t offset)
      : shape(s), size(s.batch * s.channels * s.pixels), offset(offset), x(size, offset), e(size, offset),
        g(size, offset), h(size, offset), e_half(size, offset), e_as_half(size, offset) {
    const double row[12] = {1.013, -0.27, 0.113, 0.31, -0.5, 1.11, -0.48, 0.2, 0.07, 0.9, 0.43, 0};
    for (int i = 0; i < 12; ++i) table[i] = static_cast<T>(row[i]);
    for (int64_t i = 0; i < size; ++i) {
      T* const targets[4] = {x.get() + i, e.get() + i, g.get() + i, h.get() + i};
      const Words w = philox4x32_10(static_cast<uint32_t>(i), 7, 7, 7, 7, 7);
      const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
      for (int k = 0; k < 4; ++k) *targets[k] = static_cast<T>(4) * uniform_from<T>(words[k]) - static_cast<T>(2);
      e_half.get()[i].bits = static_cast<uint16_t>(w.w0 & 0xBFFF);  // below 2 in magnitude
    }
    for (int64_t b = 0; b < s.batch; ++b) {
      ids.push_back(5 * b + 4000000000ll);
      draws.push_back(b % 3);
    }
  }

  NoiseSource source() const { return {&seed, ids.data(), draws.data(), &step, 1, 2}; }

  // A row of the state alone; the checks add inputs and outputs.
  RowArgs row(bool generated, T* x_next) const {
    RowArgs args{};
    args.x = x.get();
    args.table = table;
    args.step = &step;
    if (generated) {
      args.seed = &seed;
      args.sample_ids = ids.data();
      args.draws = draws.data();
    }
    args.stream = 1;
    args.domain = 2;
    args.x_next = x_next;
    args.rows = 1;
    args.shape = shape;
    args.dtype = args.noise_pred_dtype = args.guidance_dtype = kState<T>;
    return args;
  }

  BatchShape shape;
  int64_t size, offset;
  Array<T> x, e, g, h;
  Array<cuda::Float16> e_half;
  Array<T> e_as_half;
  T table[16] = {};
  int64_t seed = -42, step = 0;
  std::vector<int64_t> ids, draws;
};

template <typename T>
void check_noise(Problem<T>& p, NoiseKind kind) {
  Array<T> expected(p.size, p.offset), got(p.size, p.offset);
  NoiseArgs args{p.source(), expected.get(), kind, p.shape, kState<T>};
  expect(host::noise(args, 1, *host::find_kernels(nullptr)) == kOk, "host noise");
  args.out = got.get();
  const cuda::Plan plan = cuda::plan_noise(args);
  ++accesses_seen[static_cast<int>(plan.access)];
  run<T>(args, plan);
  expect(got == expected, "noise equals the host's");
}

template <typename T>
void check_row(Problem<T>& p, bool clip, bool generated, bool everything) {
  p.table[kClipColumn] = static_cast<T>(clip);
  Array<T> host_x(p.size, p.offset), host_h(p.size, p.offset), x(p.size, p.offset), h(p.size, p.offset);
  RowArgs args = p.row(generated, host_x.get());
  if (everything) {
    args.noise_pred = p.e.get();
    args.guidance = p.g.get();
    args.register_in = p.h.get();
    args.noise = generated ? nullptr : p.g.get();
    args.register_next = host_h.get();
  }
  expect(host::affine_row(args, 1, *host::find_kernels(nullptr)) == kOk, "host row");
  args.x_next = x.get();
  args.register_next = everything ? h.get() : nullptr;
  const cuda::Plan plan = cuda::plan_row(args);
  ++accesses_seen[static_cast<int>(plan.access)];
  expect(cuda::check(args) == kOk, "row arguments");
  run<T>(args, plan);
  expect(x == host_x, "row equals the host's");
  expect(h == host_h, "register equals the host's");
}

template <typename T>
void check_vjp(Problem<T>& p, bool clip, bool everything) {
  p.table[kClipColumn] = static_cast<T>(clip);
  Array<T> a0(p.size, p.offset), a1(p.size, p.offset), a2(p.size, p.offset), a3(p.size, p.offset);
  Array<T> b0(p.size, p.offset), b1(p.size, p.offset), b2(p.size, p.offset), b3(p.size, p.offset);
  const void* w = everything ? p.h.get() : nullptr;
  const auto call = [&](const Array<T>& v_x, const Array<T>& v_e, const Array<T>& v_g, const Array<T>& v_h) {
    return RowVjpArgs{p.g.get(), w,         p.x.get(), p.e.get(), p.table, &p.step, v_x.get(), v_e.get(),
                      everything ? v_g.get() : nullptr, everything ? v_h.get() : nullptr, 1, p.size, kState<T>,
                      kState<T>};
  };
  expect(host::affine_row_vjp(call(a0, a1, a2, a3), 1, *host::find_kernels(nullptr)) == kOk, "host vjp");
  const RowVjpArgs args = call(b0, b1, b2, b3);
  run<T>(args, cuda::plan_vjp(args));
  expect(a0 == b0 && a1 == b1 && a2 == b2 && a3 == b3, "transposed row equals the host's");
}

// A network output in 16 bits counts as its value in 32; floats of 16 bits are widened exactly.
void check_narrow(Problem<float>& p) {
  Array<float> wide(p.size, p.offset), narrow(p.size, p.offset);
  for (const DType type : {kFloat16, kBFloat16}) {
    for (int64_t i = 0; i < p.size; ++i) {
      const uint16_t bits = p.e_half.get()[i].bits;
      p.e_as_half.get()[i] = type == kFloat16 ? cuda::widen(cuda::Float16{bits}) : cuda::widen(cuda::BFloat16{bits});
    }
    RowArgs args = p.row(true, wide.get());
    args.noise_pred = p.e_as_half.get();
    run<float>(args, cuda::plan_row(args));
    args.noise_pred = p.e_half.get();
    args.noise_pred_dtype = type;
    args.x_next = narrow.get();
    run<float>(args, cuda::plan_row(args));
    expect(narrow == wide, "a 16-bit network output equals the same in 32 bits");
  }
}

template <typename T>
void check_shapes() {
  const int64_t shapes[][3] = {{1, 1, 1}, {2, 3, 35},   {1, 1, 1023}, {2, 1, 1025}, {3, 5, 7},  {2, 3, 1024},
                               {1, 9, 2}, {9, 3, 1019}, {0, 3, 4},    {5, 2, 64},   {4, 3, 34}, {3, 6, 3}};
  for (const auto& s : shapes) {
    for (const Layout layout : {kContiguous, kChannelsLast}) {
      for (const int64_t offset : {0, 1}) {
        Problem<T> p({s[0], s[1], s[2], layout}, offset);
        for (const NoiseKind kind : {kNormal, kUniform}) check_noise(p, kind);
        for (int bits = 0; bits < 8; ++bits) {
          check_row(p, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0);
          check_vjp(p, (bits & 1) != 0, (bits & 4) != 0);
        }
        if constexpr (sizeof(T) == sizeof(float)) check_narrow(p);
      }
    }
  }
}

// What the host refuses with an error is NaN here, and nothing outside is read.
void check_mistakes() {
  Problem<float> p({1, 3, 8, kContiguous}, 0);
  Array<float> x(p.size, 0), e(p.size, 0);
  const auto all_nan = [&](const Array<float>& a) {
    bool nan = true;
    for (int64_t i = 0; i < p.size; ++i) nan = nan && a.get()[i] != a.get()[i];
    return nan;
  };
  for (const int64_t step : {-1, 1, 1 << 20}) {
    p.step = step;
    const RowArgs args = p.row(false, x.get());
    run<float>(args, cuda::plan_row(args));
    expect(all_nan(x), "a step outside the table makes the state NaN");
  }
  const NoiseArgs noise{p.source(), e.get(), kNormal, p.shape, kFloat32};
  run<float>(noise, cuda::plan_noise(noise));
  expect(all_nan(e), "a step beyond the counter makes the noise NaN");
  p.step = 0;
  p.table[kClipColumn] = 1;
  const RowVjpArgs vjp{p.g.get(), nullptr, nullptr, nullptr, p.table, &p.step, x.get(), e.get(),
                       nullptr,   nullptr, 1,       p.size,  kFloat32, kFloat32};
  run<float>(vjp, cuda::plan_vjp(vjp));
  expect(all_nan(x) && all_nan(e), "a clipping row without the state makes the cotangents NaN");
  RowArgs row = p.row(false, x.get());
  row.noise_pred = p.x.get();
  row.noise_pred_dtype = kFloat16;
  row.dtype = kFloat64;
  expect(cuda::check(row) == kBadDType, "a float64 state takes float64 only");
  row.dtype = kFloat16;
  expect(cuda::check(row) == kBadDType, "a float16 state is refused");
  row.dtype = kFloat32;
  row.shape.batch = int64_t{1} << 40;
  expect(!cuda::plan_row(row).fits, "batches beyond 32 bits of fours are refused");
}

}  // namespace

int main() {
  check_shapes<float>();
  check_shapes<double>();
  check_mistakes();
  for (const int seen : accesses_seen) expect(seen > 0, "every kind of access was tried");
  return finish("device_check");
}
