#include "kernels.h"

#include <cstring>

namespace fastpure::host {

int available_kernels(const Kernels* (&list)[kInstructionSets]) {
  int count = 0;
#if defined(FASTPURE_X86_CLONES)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    if (__builtin_cpu_supports("avx512bf16")) list[count++] = &kAvx512Bf16;
    list[count++] = &kAvx512;
  }
  if (avx2) list[count++] = &kAvx2;
#endif
  list[count++] = &kBaseline;
  return count;
}

const Kernels* find_kernels(const char* name) {
  const Kernels* list[kInstructionSets];
  static const Kernels* const best = (available_kernels(list), list[0]);
  if (name == nullptr) return best;
  const int count = available_kernels(list);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(list[i]->name, name) == 0) return list[i];
  }
  return nullptr;
}

}  // namespace fastpure::host
