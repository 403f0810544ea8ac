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

constexpr int kSpins = 4000;  // some 0.1 ms

// Spins, then gives the processor away between looks, until `done` says so. Returns how long it took after the
// spinning.
template <class F> Clock::duration wait_until(F&& done) {
  for (int i = 0; i < kSpins; i++) {
    if (done()) return {};
    relax();
  }
  const auto start = Clock::now();
  while (!done()) std::this_thread::yield();
  return Clock::now() - start;
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

void Crew::begin(Clock::time_point now) {
  if (size_ < most_ && now >= try_again_) size_ = most_, lost_ = 0.0;
}

void Crew::end(Clock::time_point now, Clock::duration spent, Clock::duration waited) {
  if (size_ == 1 || spent <= Clock::duration::zero()) return;
  constexpr double kWeight = 0.2, kTooMuch = 0.25;  // one run that was all waiting is not too much, two are
  lost_ += kWeight * (std::chrono::duration<double>(waited) / std::chrono::duration<double>(spent) - lost_);
  if (lost_ > kTooMuch) {
    size_--, lost_ = 0.0;
    try_again_ = now + pause_;
    pause_ = std::min<Clock::duration>(2 * pause_, kLongestPause);
  } else if (size_ == most_ && now > try_again_ + pause_) {
    pause_ = kShortestPause;  // all have worked undisturbed for as long as they had been fewer
  }
}

Pool::Pool(int threads) : count_(threads), crew_(threads) { spawn(); }
Pool::~Pool() { stop(); }

void Pool::spawn() {
  crew_ = Crew(count_);
  places_ = std::vector<Place>((size_t)count_);
  stopping_ = false;
  for (int id = 1; id < count_; id++) workers_.emplace_back(&Pool::loop, this, id);
}

void Pool::stop() {
  stopping_ = true;
  for (auto& place : places_) place.calls.fetch_add(1), place.calls.notify_all();
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

int Pool::taking_part() {
  std::lock_guard<std::mutex> lock(turn_);
  return crew_.size();
}

namespace {

Worker worker(int id, int count, std::vector<uint8_t>& scratch, Pool* pool) {
  uint8_t* from = scratch.data();
  return {id, count, from + (64 - (uintptr_t)from % 64) % 64, pool};
}

}  // namespace

void Pool::loop(int id) {
  Place& place = places_[(size_t)id];
  for (uint32_t seen = 0;; seen++) {
    const auto idle_since = Clock::now();
    for (int i = 1; place.calls.load(std::memory_order_acquire) == seen; i++) {
      if (i < kSpins) {
        relax();
        continue;
      }
      std::this_thread::yield();
      if (Clock::now() - idle_since > kParkAfter) place.calls.wait(seen);
    }
    if (stopping_) return;
    Worker w = worker(id, active_, place.scratch, this);
    job_(context_, w);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void Pool::start(size_t scratch_bytes, Job job, void* context) {
  std::lock_guard<std::mutex> lock(turn_);
  const auto begun = Clock::now();
  crew_.begin(begun);
  active_ = crew_.size();
  for (int id = 0; id < active_; id++) {
    Place& place = places_[(size_t)id];
    if (place.scratch.size() < scratch_bytes + 64) place.scratch.resize(scratch_bytes + 64);
    place.waited = {};
  }
  job_ = job, context_ = context;
  running_.store(active_ - 1, std::memory_order_relaxed);
  for (int id = 1; id < active_; id++) places_[(size_t)id].calls.fetch_add(1), places_[(size_t)id].calls.notify_one();
  Worker w = worker(0, active_, places_[0].scratch, this);
  job(context, w);
  places_[0].waited += wait_until([&] { return running_.load(std::memory_order_acquire) == 0; });
  Clock::duration waited{};
  for (int id = 0; id < active_; id++) waited = std::max(waited, places_[(size_t)id].waited);
  const auto now = Clock::now();
  crew_.end(now, now - begun, waited);
}

void Pool::barrier(int id) {
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == active_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  places_[(size_t)id].waited += wait_until([&] { return generation_.load(std::memory_order_acquire) != generation; });
}

}  // namespace thrifty
