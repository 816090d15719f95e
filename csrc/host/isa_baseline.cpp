// The inner loops with the instructions every machine of this architecture has.
#define FASTPURE_ISA baseline
#define FASTPURE_LANES 4
#define FASTPURE_ISA_TABLE kBaseline
#include "loops.inl"
