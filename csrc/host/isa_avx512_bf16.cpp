// The inner loops for AVX-512 with products of bfloat16. System headers come first: they must not be compiled for it.
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#if defined(FASTPURE_X86_CLONES)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma,prefer-vector-width=512")
#endif
#define FASTPURE_ISA avx512_bf16
#define FASTPURE_BF16_PRODUCTS 1
#define FASTPURE_LANES 16
#define FASTPURE_ISA_TABLE kAvx512Bf16
#include "loops.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
