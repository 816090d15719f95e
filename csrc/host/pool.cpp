#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastpure::host {
namespace {

constexpr int kMaxWorkers = 255;
constexpr int kSpins = 4096;  // some tens of microseconds: long enough for the next row of a fast loop

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// One loop. Workers that come late find no range left; shared ownership keeps it valid for them.
struct Job {
  RangeFunction function;
  const void* context;
  int64_t total, grain;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> finished{0};
  std::atomic<int> seats;  // workers that may still join

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= total) return;
      const int64_t end = std::min(begin + grain, total);
      function(context, begin, end);
      finished.fetch_add(end - begin, std::memory_order_acq_rel);
    }
  }
};

// Workers live as long as the process. The object is never destroyed: at exit they are simply cut off while asleep.
class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  // False if another thread is using the pool, or if no worker can be had.
  bool run(const std::shared_ptr<Job>& job, int workers) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock() || !grow(workers)) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job->work();
    for (int spins = 0; job->finished.load(std::memory_order_acquire) < job->total; ++spins) {
      spins < kSpins ? pause() : std::this_thread::yield();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    job_.reset();
    return true;
  }

 private:
  // At least one worker, at best `workers` of them.
  bool grow(int workers) {
    try {
      while (static_cast<int>(threads_.size()) < workers) {
        threads_.emplace_back([this] { loop(); });
        threads_.back().detach();
      }
    } catch (...) {
      // The system refuses more threads: use those there are.
    }
    return !threads_.empty();
  }

  void loop() {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) pause();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        job = job_;
      }
      if (job && job->seats.fetch_sub(1, std::memory_order_relaxed) > 0) job->work();
    }
  }

  const pid_t owner_;
  std::mutex busy_;   // held by the caller that uses the pool
  std::mutex mutex_;  // guards job_
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> generation_{0};
  std::vector<std::thread> threads_;
};

std::atomic<Pool*> current_pool{nullptr};

// The pool of this process. A forked child has none of its parent's threads, so it gets a pool of its own.
Pool& pool() {
  const pid_t self = getpid();
  Pool* existing = current_pool.load(std::memory_order_acquire);
  while (existing == nullptr || existing->owner() != self) {
    Pool* fresh = new Pool(self);
    if (current_pool.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;  // another thread was faster; `existing` is its pool
  }
  return *existing;
}

}  // namespace

void parallel_for(int64_t total, int64_t grain, int threads, RangeFunction function, const void* context) {
  if (total <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t ranges = (total + grain - 1) / grain;
  const int workers = static_cast<int>(std::min<int64_t>({ranges, threads, kMaxWorkers + 1}) - 1);
  if (workers > 0) {
    auto job = std::make_shared<Job>();
    job->function = function;
    job->context = context;
    job->total = total;
    job->grain = grain;
    job->seats.store(workers, std::memory_order_relaxed);
    if (pool().run(job, workers)) return;
  }
  function(context, 0, total);
}

}  // namespace fastpure::host
