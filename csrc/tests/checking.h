// What the stand-alone checks share: counting failures, comparing bits, and memory between poisoned bands.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace checking {

inline int failures = 0;

inline void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what);
}

// The exit status, said aloud.
inline int finish(const char* program) {
  if (failures == 0) {
    std::printf("%s: all passed\n", program);
  } else {
    std::printf("%s: %d failures\n", program, failures);
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

template <typename T>
bool same_bits(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

// A buffer with poisoned bands on both sides; the sanitizer watches what lies beyond them.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size, T value = T(0)) : size_(size), data_(size + 2 * kBand, value) {
    for (int64_t i = 0; i < kBand; ++i) data_[i] = data_[size_ + kBand + i] = kPoison;
  }
  T* get() { return data_.data() + kBand; }
  bool intact() const {
    for (int64_t i = 0; i < kBand; ++i) {
      if (data_[i] != kPoison || data_[size_ + kBand + i] != kPoison) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kBand = 66;  // even, as two bfloat16 are read at once; of no vector
  static constexpr T kPoison = T(12345);
  int64_t size_;
  std::vector<T> data_;
};

}  // namespace checking
