// Philox noise on CUDA devices; csrc/include/fastpure/philox.h has the arithmetic.
#include "support.h"
#include "threads.h"

namespace fastpure::cuda {
namespace {

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads) noise_kernel(const NoiseArgs args, const Cut cut) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index < cut.total) noise_thread<T, kAccess>(args, cut, index);
}

template <typename T>
void start(const NoiseArgs& args, const Plan& plan, cudaStream_t stream) {
  const Cut& cut = plan.cut;
  switch (plan.access) {
    case Access::kVector:
      noise_kernel<T, Access::kVector><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
    case Access::kScalar:
      noise_kernel<T, Access::kScalar><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
    case Access::kStrided:
      noise_kernel<T, Access::kStrided><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
  }
}

}  // namespace

cudaError_t preload_noise() {
  return load_kernels(noise_kernel<float, Access::kVector>, noise_kernel<float, Access::kScalar>,
                      noise_kernel<float, Access::kStrided>, noise_kernel<double, Access::kVector>,
                      noise_kernel<double, Access::kScalar>, noise_kernel<double, Access::kStrided>);
}

Outcome noise(const NoiseArgs& args, const Target& target) {
  const Status status = check(args);
  if (status != kOk) return {status, 0};
  const Plan plan = plan_noise(args);
  if (!plan.fits) return {kTooLarge, 0};
  if (plan.cut.total == 0) return {kOk, 0};
  const DeviceGuard guard(target.device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaStream_t stream = static_cast<cudaStream_t>(target.stream);
  args.dtype == kFloat32 ? start<float>(args, plan, stream) : start<double>(args, plan, stream);
  return {kOk, cudaGetLastError()};
}

}  // namespace fastpure::cuda
