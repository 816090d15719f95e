// A number that changes when memory does. Weights can be written to behind a framework's back, and whoever keeps
// something derived from them has to notice; reading all of them takes less than one layer.
#include <cstring>

#include "launch.h"

namespace fastpure::host {
namespace {

constexpr int kStreams = 8;
constexpr int64_t kStride = kStreams * static_cast<int64_t>(sizeof(uint64_t));

// Fletcher's checksum in several streams: the sum of the words, and the sum of those sums, which tells their order.
struct Sums {
  uint64_t words[kStreams] = {}, sums[kStreams] = {};
  void add(const uint64_t (&read)[kStreams]) {
    for (int k = 0; k < kStreams; ++k) words[k] += read[k];
    for (int k = 0; k < kStreams; ++k) sums[k] += words[k];
  }
};

}  // namespace

uint64_t fingerprint(const Span* spans, int64_t count) {
  Sums all;
  for (int64_t i = 0; i < count; ++i) {
    const char* from = static_cast<const char*>(spans[i].data);
    int64_t left = spans[i].bytes;
    for (; left >= kStride; left -= kStride, from += kStride) {
      uint64_t read[kStreams];
      std::memcpy(read, from, sizeof read);
      all.add(read);
    }
    uint64_t rest[kStreams] = {};
    std::memcpy(rest, from, static_cast<size_t>(left));
    all.add(rest);
  }
  uint64_t whole = 0;
  for (int k = 0; k < kStreams; ++k) {
    whole = (whole ^ all.words[k]) * 0x9E3779B97F4A7C15u;
    whole = (whole ^ all.sums[k]) * 0x9E3779B97F4A7C15u;
  }
  return whole;
}

}  // namespace fastpure::host
