// The inner loops for AVX2 with fused multiply-add. System headers come first: they must not be compiled for it.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#if defined(FASTPURE_X86_CLONES)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FASTPURE_ISA avx2
#define FASTPURE_LANES 8
#define FASTPURE_ISA_TABLE kAvx2
#include "loops.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
