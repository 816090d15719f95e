// The inner loops with the instructions every machine of this architecture has.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FASTPURE_ISA baseline
#define FASTPURE_LANES 4
#define FASTPURE_ISA_TABLE kBaseline
#include "loops.inl"
