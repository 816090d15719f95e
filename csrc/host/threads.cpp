// Threads are borrowed from the OpenMP runtime that torch has brought into the process, found by name when first
// needed. Threads of our own would lose: after each of torch's loops its workers keep their cores busy waiting for
// the next one (milliseconds, with GNU's runtime), so ours would get no core just when a row follows a network.
// Linking to OpenMP instead would load a second runtime wherever torch ships its own under another name.
#include "threads.h"

#include <dlfcn.h>
#include <unistd.h>
#if defined(__linux__)
#include <link.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

namespace fastpure::host {
namespace {

// What is needed of the runtime: the entry point of `#pragma omp parallel` in GNU's, which LLVM's and Intel's have
// too, and the number of the calling thread in its team.
struct Runtime {
  void (*start_team)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_number)();
};

bool look_up(void* library, Runtime& runtime) {
  void* start = dlsym(library, "GOMP_parallel");
  void* number = dlsym(library, "omp_get_thread_num");
  if (start == nullptr || number == nullptr) return false;
  runtime.start_team = reinterpret_cast<decltype(runtime.start_team)>(start);
  runtime.thread_number = reinterpret_cast<decltype(runtime.thread_number)>(number);
  return true;
}

#if defined(__linux__)
// What to look into, and what was found there.
struct Search {
  const char* const* names;  // beginnings of file names, up to a null
  Runtime found;
};

// Looks into libraries that were loaded without offering their names to everyone, and into what they were linked with.
int look_into(dl_phdr_info* info, size_t, void* data) {
  Search& search = *static_cast<Search*>(data);
  const char* file = std::strrchr(info->dlpi_name, '/');
  file = file == nullptr ? info->dlpi_name : file + 1;
  for (const char* const* name = search.names; *name != nullptr; ++name) {
    if (std::strncmp(file, *name, std::strlen(*name)) != 0) continue;
    void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return 0;
    const bool complete = look_up(library, search.found);
    dlclose(library);
    return complete;
  }
  return 0;
}

bool find_in(const char* const* names, Runtime& found) {
  Search search{names, {}};
  if (dl_iterate_phdr(look_into, &search) == 0) return false;
  found = search.found;
  return true;
}
#endif

// Torch's own first: other packages bring runtimes of the same name, and theirs would be a second set of threads.
bool find_runtime(Runtime& found) {
#if defined(__linux__)
  static const char* const torch[] = {"libtorch_cpu", nullptr};
  static const char* const runtimes[] = {"libgomp", "libomp", "libiomp", nullptr};
  return find_in(torch, found) || look_up(RTLD_DEFAULT, found) || find_in(runtimes, found);
#else
  return look_up(RTLD_DEFAULT, found);
#endif
}

// Null if there is none; then it is looked for again next time, as torch may be loaded later than this library.
const Runtime* runtime() {
  static std::atomic<const Runtime*> known{nullptr};
  const Runtime* runtime = known.load(std::memory_order_acquire);
  if (runtime != nullptr) return runtime;
  Runtime found{};
  if (!find_runtime(found)) return nullptr;
  runtime = new Runtime(found);  // once per process, kept
  known.store(runtime, std::memory_order_release);
  return runtime;
}

// A forked child has none of its parent's threads, and the runtime does not notice.
const pid_t loaded_by = getpid();

constexpr int kMaxTeam = 128;

// Each thread has a block of its own, the same in every loop over the same total, so that it finds in its cache what
// it wrote there last time. One that is done helps the others, so that a thread that lost its core delays nobody.
struct Job {
  struct alignas(64) Cursor {
    std::atomic<int64_t> next;
  };
  RangeFunction function;
  const void* context;
  int64_t total, grain;
  int team;
  const Runtime* runtime;
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // that of the first thread that failed
  Cursor cursors[kMaxTeam];

  int64_t block_begin(int block) const { return total * block / team; }
};

void work_through(Job& job) {
  const int self = job.runtime->thread_number();
  for (int i = 0; i < job.team; ++i) {
    const int block = (self + i) % job.team;
    const int64_t end = job.block_begin(block + 1);
    for (;;) {
      const int64_t begin = job.cursors[block].next.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= end) break;
      job.function(job.context, begin, std::min(begin + job.grain, end));
      if (job.failed.load(std::memory_order_relaxed)) return;
    }
  }
}

// An exception that left a thread of the team would end the process.
void work(void* data) noexcept {
  Job& job = *static_cast<Job*>(data);
  try {
    work_through(job);
  } catch (...) {
    if (!job.failed.exchange(true)) job.failure = std::current_exception();
  }
}

}  // namespace

void parallel_for(int64_t total, int64_t grain, int threads, RangeFunction function, const void* context) {
  if (total <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t ranges = (total + grain - 1) / grain;
  const int team = static_cast<int>(std::min<int64_t>({ranges, threads, kMaxTeam}));
  const Runtime* found = team > 1 && getpid() == loaded_by ? runtime() : nullptr;
  if (found == nullptr) return function(context, 0, total);
  Job job;
  job.function = function;
  job.context = context;
  job.total = total;
  job.grain = grain;
  job.team = team;
  job.runtime = found;
  for (int block = 0; block < team; ++block) {
    job.cursors[block].next.store(job.block_begin(block), std::memory_order_relaxed);
  }
  found->start_team(work, &job, static_cast<unsigned>(team), 0);
  if (job.failure != nullptr) std::rethrow_exception(job.failure);
}

const char* threads_from() {
  Dl_info info;
  const Runtime* found = runtime();
  if (found == nullptr || dladdr(reinterpret_cast<void*>(found->start_team), &info) == 0) return nullptr;
  return info.dli_fname;
}

}  // namespace fastpure::host
