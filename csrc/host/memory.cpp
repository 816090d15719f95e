// Memory that a thread keeps between calls. It is as much as its largest network needed, megabytes.
#include <cstddef>
#include <cstdlib>
#include <new>

#include "memory.h"

namespace fastpure::host {
namespace {

constexpr size_t kAlignment = 64;

struct Block {
  void* data = nullptr;
  size_t size = 0;
  ~Block() { std::free(data); }
};

}  // namespace

void* thread_memory(ThreadMemory what, int64_t bytes) {
  thread_local Block blocks[kThreadMemories];
  Block& block = blocks[what];
  const size_t wanted = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  if (wanted > block.size) {
    void* data = std::aligned_alloc(kAlignment, wanted);
    if (data == nullptr) throw std::bad_alloc();
    std::free(block.data);
    block.data = data;
    block.size = wanted;
  }
  return block.data;
}

}  // namespace fastpure::host
