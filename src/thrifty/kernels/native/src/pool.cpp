#include "pool.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thrifty {

namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, then gives the processor away between looks, until `done` says so.
template <class F> void wait_until(F&& done) {
  for (int i = 0; !done(); i++) {
    if (i < 4000) relax();
    else std::this_thread::yield();
  }
}

constexpr auto kParkAfter = std::chrono::milliseconds(1);

int quota_of_control_group() {
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/sys/fs/cgroup/cpu.max", "r"), std::fclose);
  long long quota = 0, period = 0;
  if (!file || std::fscanf(file.get(), "%lld %lld", &quota, &period) != 2 || quota <= 0 || period <= 0) return 1 << 20;
  return (int)((quota + period - 1) / period);
}

}  // namespace

int Pool::available() {
  int processors = (int)std::thread::hardware_concurrency();
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) processors = CPU_COUNT(&set);
#endif
  return std::max(1, std::min(processors, quota_of_control_group()));
}

Pool& Pool::shared() {
  static std::mutex guard;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(guard);
  if (!pool || owner != getpid()) {  // the threads of a parent do not exist in its child: leave its pool alone
    int threads = pool ? pool->count_ : available();
    pool = new Pool(threads);
    owner = getpid();
  }
  return *pool;
}

Pool::Pool(int threads) : count_(threads) { spawn(); }
Pool::~Pool() { stop(); }

void Pool::spawn() {
  scratch_.resize((size_t)count_);
  stopping_ = false;
  const uint32_t seen = epoch_.load();
  for (int id = 1; id < count_; id++) workers_.emplace_back(&Pool::loop, this, id, seen);
}

void Pool::stop() {
  stopping_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& t : workers_) t.join();
  workers_.clear();
}

void Pool::resize(int threads) {
  if (threads < 1 || threads > available())
    throw std::invalid_argument("threads must be between 1 and " + std::to_string(available()) +
                                " (the processors this process may use), not " + std::to_string(threads));
  std::lock_guard<std::mutex> lock(turn_);
  if (threads == count_) return;
  stop();
  count_ = threads;
  spawn();
}

void Pool::loop(int id, uint32_t seen) {
  for (;;) {
    auto idle_since = std::chrono::steady_clock::now();
    for (int i = 1; epoch_.load(std::memory_order_acquire) == seen; i++) {
      if (i < 4000) {
        relax();
        continue;
      }
      std::this_thread::yield();
      if (std::chrono::steady_clock::now() - idle_since > kParkAfter) epoch_.wait(seen);
    }
    seen++;
    if (stopping_) return;
    Worker w{id, count_, scratch_[(size_t)id].data(), this};
    w.scratch += (64 - (uintptr_t)w.scratch % 64) % 64;
    job_(context_, w);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void Pool::start(size_t scratch_bytes, Job job, void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  for (auto& s : scratch_)
    if (s.size() < scratch_bytes + 64) s.resize(scratch_bytes + 64);
  job_ = job, context_ = context;
  running_.store(count_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1);
  if (count_ > 1) epoch_.notify_all();
  Worker w{0, count_, scratch_[0].data(), this};
  w.scratch += (64 - (uintptr_t)w.scratch % 64) % 64;
  job(context, w);
  wait_until([&] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::barrier() {
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return generation_.load(std::memory_order_acquire) != generation; });
}

}  // namespace thrifty
