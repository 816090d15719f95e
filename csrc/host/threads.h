// Loops over independent ranges, on the threads that are there already.
#pragma once

#include <cstdint>

namespace fastpure::host {

// What to do with the range [begin, end); `context` is what the caller passed.
using RangeFunction = void (*)(const void* context, int64_t begin, int64_t end);

// Calls `function` on ranges of at most `grain` that together cover [0, total), on up to `threads` threads
// including the caller, and returns when all are done. Which thread gets which range is left open, so `function`
// must not care; what it throws reaches the caller when no thread is at work any more. Without an OpenMP runtime in
// the process, and in forked children, the caller does it alone.
void parallel_for(int64_t total, int64_t grain, int threads, RangeFunction function, const void* context);

// File of the OpenMP runtime whose threads are used; null if there is none.
const char* threads_from();

}  // namespace fastpure::host
