// A persistent pool: one call of `run` executes a whole step on all workers, which meet at barriers in between.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace thrifty {

class Pool;

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
  void resize(int threads);  // throws std::invalid_argument beyond available()
  static int available();    // processors that this process may use: affinity mask and control-group quota

  // Calls job(worker) on every worker, the calling thread among them. `job` must not throw. Callers take turns.
  template <class F> void run(size_t scratch_bytes, F&& job) {
    start(scratch_bytes, [](void* context, Worker& w) noexcept { (*static_cast<std::remove_reference_t<F>*>(context))(w); }, &job);
  }

 private:
  friend struct Worker;
  using Job = void (*)(void*, Worker&) noexcept;
  void start(size_t scratch_bytes, Job job, void* context);
  void spawn();
  void stop();
  void loop(int id, uint32_t seen);
  void barrier();

  int count_;
  std::mutex turn_;
  std::vector<std::thread> workers_;
  std::vector<std::vector<uint8_t>> scratch_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool stopping_ = false;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

inline void Worker::barrier() {
  if (count > 1) pool->barrier();
}

}  // namespace thrifty
