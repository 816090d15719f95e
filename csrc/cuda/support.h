// What the launchers share that needs CUDA: the device guard and the loading of kernels.
#pragma once

#include <cuda_runtime.h>

#include "plan.h"

namespace fastpure::cuda {

// Makes `device` current and puts back what was current before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || before_ == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

inline unsigned blocks(const Cut& cut) { return (cut.total + kThreads - 1) / kThreads; }

// One for each file with kernels: load them on the current device.
cudaError_t preload_noise();
cudaError_t preload_row();

template <typename Kernel>
cudaError_t load_kernel(Kernel* kernel) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
}

// Loads the kernels one after the other until one fails.
template <typename... Kernels>
cudaError_t load_kernels(Kernels*... kernels) {
  cudaError_t error = cudaSuccess;
  (void)((error = load_kernel(kernels), error == cudaSuccess) && ...);
  return error;
}

}  // namespace fastpure::cuda
