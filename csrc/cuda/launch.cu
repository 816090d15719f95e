// Devices, errors and versions.
#include "launch.h"

#include <cuda_runtime.h>

#include "support.h"

namespace fastpure::cuda {
namespace {

// The number of devices, and what CUDA says about it. Clears the error, which would show up in the next launch.
cudaError_t count_devices(int& count) {
  count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    count = 0;
    (void)cudaGetLastError();
  }
  return error;
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

Outcome preload(int device) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return {kOk, guard.error()};
  const cudaError_t error = preload_noise();
  return {kOk, error != cudaSuccess ? error : preload_row()};
}

std::vector<int> capabilities() {
  int count;
  (void)count_devices(count);
  std::vector<int> found;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    found.push_back(10 * major + minor);
  }
  return found;
}

std::string device_trouble() {
  int count;
  return error_text(count_devices(count));
}

std::string error_text(int error) {
  const cudaError_t code = static_cast<cudaError_t>(error);
  return std::string(cudaGetErrorString(code)) + " (" + cudaGetErrorName(code) + ")";
}

std::string compiler_version() {
  int runtime = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  return "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
         std::to_string(__CUDACC_VER_BUILD__) + ", runtime " + version(runtime);
}

}  // namespace fastpure::cuda
