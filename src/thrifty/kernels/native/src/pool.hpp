// A persistent pool: one call of `run` executes a whole step on all workers, which meet at barriers in between.
//
// On a busy machine a worker may lose its processor in the middle of a step, and the others wait for it at every
// barrier. The pool measures how long its workers waited. While that is much of a step, fewer workers take part in the
// next ones; after a while all are tried again. Results do not depend on how many take part.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace thrifty {

class Pool;

using Clock = std::chrono::steady_clock;

// How many of the pool's workers take part in the next run.
class Crew {
 public:
  explicit Crew(int most) : most_(most), size_(most) {}
  int size() const { return size_; }
  // Before a run: all workers again, where it is time to try.
  void begin(Clock::time_point now);
  // After a run: `waited` is the longest time that one of its workers waited beyond a short spin.
  void end(Clock::time_point now, Clock::duration spent, Clock::duration waited);

 private:
  int most_, size_;
  double lost_ = 0.0;  // moving average of the share of a run that was waited for
  Clock::time_point try_again_{};
  Clock::duration pause_ = kShortestPause;  // until all are tried again; doubles while that fails
  static constexpr std::chrono::milliseconds kShortestPause{100}, kLongestPause{5000};
};

struct Worker {
  int id, count;
  uint8_t* scratch;  // at least the bytes asked of Pool::run, 64-byte aligned, private to the worker
  Pool* pool;
  void barrier();
  // The share of [0, total) that belongs to this worker.
  int begin(int total) const { return (int)((int64_t)total * id / count); }
  int end(int total) const { return (int)((int64_t)total * (id + 1) / count); }
};

class Pool {
 public:
  static Pool& shared();  // made at the first use, made anew in a forked child
  explicit Pool(int threads);
  ~Pool();
  int threads() const { return count_; }
  int taking_part();         // of the threads, in the latest run
  void resize(int threads);  // throws std::invalid_argument beyond available()
  static int available();    // processors that this process may use: affinity mask and control-group quota

  // Calls job(worker) on every worker, the calling thread among them. `job` must not throw. Callers take turns.
  template <class F> void run(size_t scratch_bytes, F&& job) {
    start(
        scratch_bytes,
        [](void* context, Worker& w) noexcept { (*static_cast<std::remove_reference_t<F>*>(context))(w); }, &job);
  }

 private:
  friend struct Worker;
  using Job = void (*)(void*, Worker&) noexcept;
  void start(size_t scratch_bytes, Job job, void* context);
  void spawn();
  void stop();
  void loop(int id);
  void barrier(int id);

  // What belongs to one worker; no two of them share a line of memory.
  struct alignas(64) Place {
    std::atomic<uint32_t> calls{0};  // how often the worker was called
    Clock::duration waited{};        // in this run
    std::vector<uint8_t> scratch;
  };

  int count_;
  Crew crew_;
  std::mutex turn_;
  std::vector<std::thread> workers_;
  std::vector<Place> places_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  int active_ = 1;  // workers of the present run
  bool stopping_ = false;
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

inline void Worker::barrier() {
  if (count > 1) pool->barrier(id);
}

}  // namespace thrifty
