// Memory that threads keep between calls, and how AddressSanitizer is told what of it is in use.
#pragma once

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fastpure::host {

#if defined(__SANITIZE_ADDRESS__)
#define FASTPURE_POISON(begin, bytes) ASAN_POISON_MEMORY_REGION(begin, static_cast<size_t>(bytes))
#define FASTPURE_UNPOISON(begin, bytes) ASAN_UNPOISON_MEMORY_REGION(begin, static_cast<size_t>(bytes))
constexpr int64_t kArenaGap = 64;
#else
#define FASTPURE_POISON(begin, bytes) static_cast<void>(0)
#define FASTPURE_UNPOISON(begin, bytes) static_cast<void>(0)
constexpr int64_t kArenaGap = 0;
#endif

// What it is for.
enum ThreadMemory { kArena, kTape, kStats, kCotangents, kThreadMemories };

// Memory of the calling thread, at least so many bytes, aligned to 64; the same address until more is asked for.
// Throws std::bad_alloc, which `parallel_for` carries to its caller.
void* thread_memory(ThreadMemory what, int64_t bytes);

}  // namespace fastpure::host
