// Argument blocks of every kernel, for the host and for accelerators: plain data, no framework.
//
// A block is what crosses from Python, and every field of it is 64 bits wide. It begins with the arguments of the
// operation's schema, in its order (a tensor is its address, null where it is absent); then come extents and dtype
// codes, in the order of fastpure/kernels/*/launch.py. csrc/module.h copies both, so an argument list stands in the schema
// and here, and in no function between the two.
//
// All image pointers address dense [B, C, H, W] batches of one dtype and one layout. Keys, step and table are pointers
// on purpose: they are read when the kernel runs, so that a recorded graph can be replayed with other values.
#pragma once

#include <cstdint>

#define FASTPURE_ABI 5  // raise with every change of the binding; fastpure/kernels/extension.py holds the same number

#if defined(__CUDACC__)
#define FASTPURE_HD static __host__ __device__ __forceinline__
#else
// Internal linkage and forced inlining: the same header is compiled for several instruction sets, and no copy made
// for one of them may be picked by the linker for another.
#define FASTPURE_HD static inline __attribute__((always_inline))
#endif

namespace fastpure {

// The state has one of the first two; the others may come out of a network.
enum DType : int64_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum Layout : int64_t { kContiguous = 0, kChannelsLast = 1 };
enum NoiseKind : int64_t { kNormal = 0, kUniform = 1 };
enum Status : int32_t {
  kOk = 0,
  kBadStep = 1,    // step outside the table
  kBadDType = 2,
  kBadLayout = 3,
  kBadKind = 4,
  kNoState = 5,    // a clipping row was to be transposed without the state
  kTooLarge = 6,   // more elements than one launch can number
  kNoCuda = 7,     // the extension was built without its CUDA half
};

constexpr int kTableWidth = 16;  // columns of the coefficient table, the tail is padding
constexpr int kClipColumn = 11;  // columns: a b c d p q r u s alpha sigma clip

// Where noise comes from: the key and counter of the generator, all in the memory of the device that runs.
struct NoiseSource {
  const int64_t* seed;        // [1], bit pattern of the unsigned seed
  const int64_t* sample_ids;  // [B]
  const int64_t* draws;       // [B]
  const int64_t* step;        // [1]
  int64_t stream;             // stream and domain: 8 bits each
  int64_t domain;
};

// Extents of a batch, in elements.
struct BatchShape {
  int64_t batch;
  int64_t channels;
  int64_t pixels;  // H * W
  Layout layout;
};

// philox_normal and philox_uniform, which differ in `kind`.
struct NoiseArgs {
  NoiseSource source;
  void* out;
  NoiseKind kind;
  BatchShape shape;
  DType dtype;
};

// affine_row. The network output and the guidance gradient may be narrower than a float32 state on CUDA devices; their
// codes say nothing where they are absent.
struct RowArgs {
  const void* x;
  const void* noise_pred;
  const void* guidance;
  const void* register_in;
  const void* noise;          // given noise; null if it is generated or absent
  const int64_t* seed;        // seed, sample_ids and draws: null if noise is given or absent
  const int64_t* sample_ids;
  const int64_t* draws;
  const void* table;          // [rows, 16], dtype of the state
  const int64_t* step;
  int64_t stream;
  int64_t domain;
  void* x_next;
  void* register_next;
  int64_t rows;
  BatchShape shape;
  DType dtype;
  DType noise_pred_dtype;
  DType guidance_dtype;
};

FASTPURE_HD NoiseSource source_of(const RowArgs& args) {
  return {args.seed, args.sample_ids, args.draws, args.step, args.stream, args.domain};
}

// affine_row_vjp.
struct RowVjpArgs {
  const void* v;
  const void* v_register;
  const void* x;
  const void* noise_pred;
  const void* table;
  const int64_t* step;
  void* v_x;
  void* v_noise_pred;
  void* v_guidance;
  void* v_register_out;
  int64_t rows;
  int64_t elements;
  DType dtype;
  DType noise_pred_dtype;
};

}  // namespace fastpure
