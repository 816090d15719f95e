// Entry points for CUDA devices: choose the kernel, launch it on the caller's stream, report what CUDA says. Free of
// CUDA's headers, so that the binding needs none. Nothing here allocates device memory or waits for a device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fastpure/args.h"

namespace fastpure::cuda {

// Where to run; `stream` is a cudaStream_t.
struct Target {
  int device;
  void* stream;
};

// What came of a call: a mistake of the caller, or CUDA's error code, or two zeros.
struct Outcome {
  Status status;
  int error;
};

Outcome noise(const NoiseArgs& args, const Target& target);
Outcome affine_row(const RowArgs& args, const Target& target);
Outcome affine_row_vjp(const RowVjpArgs& args, const Target& target);

// Loads every kernel on `device`, so that none is loaded in the middle of a capture.
Outcome preload(int device);

// Compute capabilities (80, 90, ...) of the devices that can be used; empty without a driver.
std::vector<int> capabilities();

// Why `capabilities` is empty, in CUDA's words; "no error" if it is not.
std::string device_trouble();

// CUDA's name and description of an error.
std::string error_text(int error);

// Versions of the compiler and of the runtime that are linked in.
std::string compiler_version();

}  // namespace fastpure::cuda
