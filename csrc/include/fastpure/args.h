// Argument blocks of every kernel, for the host and for accelerators: plain data, no framework.
//
// All image pointers address dense [B, C, H, W] batches of one dtype and one layout; a null pointer is an absent
// input. Keys, step and table are pointers on purpose: they are read when the kernel runs, so that a recorded graph
// can be replayed with other values.
#pragma once

#include <cstdint>

#define FASTPURE_ABI 3  // raise with every change of the binding; fastpure/kernels/_ext.py holds the same number

#if defined(__CUDACC__)
#define FASTPURE_HD static __host__ __device__ __forceinline__
#else
// Internal linkage and forced inlining: the same header is compiled for several instruction sets, and no copy made
// for one of them may be picked by the linker for another.
#define FASTPURE_HD static inline __attribute__((always_inline))
#endif

namespace fastpure {

// The state has one of the first two; the others may come out of a network.
enum DType : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum Layout : int32_t { kContiguous = 0, kChannelsLast = 1 };
enum NoiseKind : int32_t { kNormal = 0, kUniform = 1 };
enum Status : int32_t {
  kOk = 0,
  kBadStep = 1,    // step outside the table
  kBadDType = 2,
  kBadLayout = 3,
  kBadKind = 4,
  kNoState = 5,    // a clipping row was to be transposed without the state
  kTooLarge = 6,   // more elements than one launch can number
};

constexpr int kTableWidth = 16;  // columns of the coefficient table, the tail is padding
constexpr int kClipColumn = 11;  // columns: a b c d p q r u s alpha sigma clip

// Where noise comes from: the key and counter of the generator, all in the memory of the device that runs.
struct NoiseSource {
  const int64_t* seed;        // [1], bit pattern of the unsigned seed
  const int64_t* sample_ids;  // [B]
  const int64_t* draws;       // [B]
  const int64_t* step;        // [1]
  uint32_t stream;
  uint32_t domain;
};

// Extents of a batch, in elements.
struct BatchShape {
  int64_t batch;
  int64_t channels;
  int64_t pixels;  // H * W
  Layout layout;
};

struct NoiseArgs {
  NoiseSource source;
  BatchShape shape;
  NoiseKind kind;
  void* out;
};

struct RowArgs {
  const void* x;
  const void* noise_pred;
  const void* guidance;
  const void* register_in;
  const void* noise;   // given noise; null if it is generated or absent
  NoiseSource source;  // seed null if noise is given or absent
  const void* table;   // [rows, 16], dtype of the state
  int64_t rows;
  const int64_t* step;
  BatchShape shape;
  void* x_next;
  void* register_next;
};

struct RowVjpArgs {
  const void* v;
  const void* v_register;
  const void* x;
  const void* noise_pred;
  const void* table;
  int64_t rows;
  const int64_t* step;
  int64_t elements;
  void* v_x;
  void* v_noise_pred;
  void* v_guidance;
  void* v_register_out;
};

}  // namespace fastpure
