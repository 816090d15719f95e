// The row update and its transpose on CUDA devices; csrc/include/fastpure/row.h has the arithmetic of one element.
#include "support.h"
#include "threads.h"

namespace fastpure::cuda {
namespace {

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads) row_kernel(const RowArgs args, const InputTypes types, const Cut cut) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index < cut.total) row_thread<T, kAccess>(args, types, cut, index);
}

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads) vjp_kernel(const RowVjpArgs args, const DType noise_pred, const Cut cut) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index < cut.total) vjp_thread<T, kAccess>(args, noise_pred, cut, index);
}

template <typename T>
void start(const RowArgs& args, const InputTypes& types, const Plan& plan, cudaStream_t stream) {
  const Cut& cut = plan.cut;
  switch (plan.access) {
    case Access::kVector:
      row_kernel<T, Access::kVector><<<blocks(cut), kThreads, 0, stream>>>(args, types, cut);
      return;
    case Access::kScalar:
      row_kernel<T, Access::kScalar><<<blocks(cut), kThreads, 0, stream>>>(args, types, cut);
      return;
    case Access::kStrided:
      row_kernel<T, Access::kStrided><<<blocks(cut), kThreads, 0, stream>>>(args, types, cut);
      return;
  }
}

template <typename T>
void start(const RowVjpArgs& args, DType noise_pred, const Plan& plan, cudaStream_t stream) {
  const Cut& cut = plan.cut;
  if (plan.access == Access::kVector) {
    vjp_kernel<T, Access::kVector><<<blocks(cut), kThreads, 0, stream>>>(args, noise_pred, cut);
  } else {
    vjp_kernel<T, Access::kScalar><<<blocks(cut), kThreads, 0, stream>>>(args, noise_pred, cut);
  }
}

}  // namespace

cudaError_t preload_row() {
  return load_kernels(row_kernel<float, Access::kVector>, row_kernel<float, Access::kScalar>,
                      row_kernel<float, Access::kStrided>, row_kernel<double, Access::kVector>,
                      row_kernel<double, Access::kScalar>, row_kernel<double, Access::kStrided>,
                      vjp_kernel<float, Access::kVector>, vjp_kernel<float, Access::kScalar>,
                      vjp_kernel<double, Access::kVector>, vjp_kernel<double, Access::kScalar>);
}

Outcome affine_row(const RowArgs& args, DType dtype, const InputTypes& types, const Target& target) {
  const Status status = check_row(args, dtype, types);
  if (status != kOk) return {status, 0};
  const Plan plan = plan_row(args, types);
  if (!plan.fits) return {kTooLarge, 0};
  if (plan.cut.total == 0) return {kOk, 0};
  const DeviceGuard guard(target.device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaStream_t stream = static_cast<cudaStream_t>(target.stream);
  dtype == kFloat32 ? start<float>(args, types, plan, stream) : start<double>(args, types, plan, stream);
  return {kOk, cudaGetLastError()};
}

Outcome affine_row_vjp(const RowVjpArgs& args, DType dtype, DType noise_pred, const Target& target) {
  if (!is_state(dtype)) return {kBadDType, 0};
  if (args.noise_pred != nullptr && !is_input(noise_pred, dtype)) return {kBadDType, 0};
  const Plan plan = plan_vjp(args, noise_pred);
  if (!plan.fits) return {kTooLarge, 0};
  if (plan.cut.total == 0) return {kOk, 0};
  const DeviceGuard guard(target.device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaStream_t stream = static_cast<cudaStream_t>(target.stream);
  dtype == kFloat32 ? start<float>(args, noise_pred, plan, stream) : start<double>(args, noise_pred, plan, stream);
  return {kOk, cudaGetLastError()};
}

}  // namespace fastpure::cuda
