// The row update and its transpose on CUDA devices; csrc/include/fastpure/row.h has the arithmetic of one element.
#include "support.h"
#include "threads.h"

namespace fastpure::cuda {
namespace {

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads) row_kernel(const RowArgs args, const Cut cut) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index < cut.total) row_thread<T, kAccess>(args, cut, index);
}

template <typename T, Access kAccess>
__global__ void __launch_bounds__(kThreads) vjp_kernel(const RowVjpArgs args, const Cut cut) {
  const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index < cut.total) vjp_thread<T, kAccess>(args, cut, index);
}

template <typename T>
void start(const RowArgs& args, const Plan& plan, cudaStream_t stream) {
  const Cut& cut = plan.cut;
  switch (plan.access) {
    case Access::kVector:
      row_kernel<T, Access::kVector><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
    case Access::kScalar:
      row_kernel<T, Access::kScalar><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
    case Access::kStrided:
      row_kernel<T, Access::kStrided><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
      return;
  }
}

template <typename T>
void start(const RowVjpArgs& args, const Plan& plan, cudaStream_t stream) {
  const Cut& cut = plan.cut;
  if (plan.access == Access::kVector) {
    vjp_kernel<T, Access::kVector><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
  } else {
    vjp_kernel<T, Access::kScalar><<<blocks(cut), kThreads, 0, stream>>>(args, cut);
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

Outcome affine_row(const RowArgs& args, const Target& target) {
  const Status status = check(args);
  if (status != kOk) return {status, 0};
  const Plan plan = plan_row(args);
  if (!plan.fits) return {kTooLarge, 0};
  if (plan.cut.total == 0) return {kOk, 0};
  const DeviceGuard guard(target.device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaStream_t stream = static_cast<cudaStream_t>(target.stream);
  args.dtype == kFloat32 ? start<float>(args, plan, stream) : start<double>(args, plan, stream);
  return {kOk, cudaGetLastError()};
}

Outcome affine_row_vjp(const RowVjpArgs& args, const Target& target) {
  const Status status = check(args);
  if (status != kOk) return {status, 0};
  const Plan plan = plan_vjp(args);
  if (!plan.fits) return {kTooLarge, 0};
  if (plan.cut.total == 0) return {kOk, 0};
  const DeviceGuard guard(target.device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaStream_t stream = static_cast<cudaStream_t>(target.stream);
  args.dtype == kFloat32 ? start<float>(args, plan, stream) : start<double>(args, plan, stream);
  return {kOk, cudaGetLastError()};
}

}  // namespace fastpure::cuda
