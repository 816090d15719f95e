// Threads for loops over independent ranges.
#pragma once

#include <cstdint>

namespace fastpure::host {

// What to do with the range [begin, end); `context` is what the caller passed.
using RangeFunction = void (*)(const void* context, int64_t begin, int64_t end);

// Calls `function` on ranges of at most `grain` that together cover [0, total), on up to `threads` threads
// including the caller, and returns when all are done. Which thread gets which range is left open, so `function`
// must not care. Called while the pool is busy (from another thread), it works alone. Safe after fork().
void parallel_for(int64_t total, int64_t grain, int threads, RangeFunction function, const void* context);

}  // namespace fastpure::host
