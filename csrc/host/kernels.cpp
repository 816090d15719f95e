#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace fastpure::host {
namespace {

// For comparisons and reports of faults: sets in front of the one of this name are not used.
const char* best_allowed() {
  static const char* const name = std::getenv("FASTPURE_MAX_CPU_ISA");
  return name;
}

#if defined(FASTPURE_X86_CLONES)
// AVX-512 with products of bfloat16.
Kernels with_products() {
  Kernels kernels = kAvx512;
  kernels.name = kAvx512Bf16.name;
  kernels.network_bf16 = kAvx512Bf16.network;
  kernels.network_vjp_bf16 = kAvx512Bf16.network_vjp;
  return kernels;
}
#endif

}  // namespace

int available_kernels(const Kernels* (&list)[kInstructionSets]) {
  int count = 0;
#if defined(FASTPURE_X86_CLONES)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    static const Kernels products = with_products();
    if (__builtin_cpu_supports("avx512bf16")) list[count++] = &products;
    list[count++] = &kAvx512;
  }
  if (avx2) list[count++] = &kAvx2;
#endif
  list[count++] = &kBaseline;
  const char* const best = best_allowed();
  for (int first = 0; best != nullptr && first < count; ++first) {
    if (std::strcmp(list[first]->name, best) != 0) continue;
    count -= first;
    for (int i = 0; i < count; ++i) list[i] = list[first + i];
  }
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
