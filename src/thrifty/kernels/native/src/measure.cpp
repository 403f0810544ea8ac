#include "measure.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.hpp"
#include "linear/linear.hpp"

namespace thrifty {

namespace {

constexpr size_t kLargePage = 2 << 20;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_bandwidth(int megabytes, int repeats) {
  if (megabytes < 1 || repeats < 1)
    throw std::invalid_argument("read_bandwidth needs at least 1 MB and 1 repeat, not " + std::to_string(megabytes) +
                                " and " + std::to_string(repeats));
  const size_t lines = (size_t)megabytes * 1000000 / 64;
  const std::unique_ptr<uint8_t, void (*)(void*)> memory(
      (uint8_t*)std::aligned_alloc(kLargePage, (lines * 64 + kLargePage - 1) / kLargePage * kLargePage), std::free);
  uint8_t* const data = memory.get();
  if (!data) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(data, lines * 64, MADV_HUGEPAGE);  // looking up addresses is no part of what the memory can do
#endif
  std::atomic<uint64_t> sum{0};
  double best = 1e30;
  for (int i = -1; i < repeats; i++) {  // the first pass fills the memory
    const auto start = std::chrono::steady_clock::now();
    Pool::shared().run(0, [&](Worker& w) {
      uint8_t* from = data + lines * (size_t)w.id / (size_t)w.count * 64;
      const size_t bytes = data + lines * (size_t)(w.id + 1) / (size_t)w.count * 64 - from;
      if (i < 0) std::memset(from, w.id + 1, bytes);
      else sum += kernels().read(from, bytes);
    });
    if (i >= 0) best = std::min(best, seconds_since(start));
  }
  if (sum.load() == 0) throw std::runtime_error("the read kernel returned nothing");
  return (double)lines * 64 / best / 1e9;
}

double gemm_rate(int repeats) {
  constexpr int n = 1024, m = 256;
  std::vector<uint8_t> codes((size_t)n * n / 2, 0x5a);
  std::vector<uint16_t> scales((size_t)n * n / 32, 0x2000);
  std::vector<float> x((size_t)m * n, 0.5f), y((size_t)m * n);
  const Linear w = make_linear(Layout::int4, (uintptr_t)codes.data(), (uintptr_t)scales.data(), 0, 0, n, n, 32);
  double best = 1e30;
  for (int i = 0; i < std::max(1, repeats) + 1; i++) {
    const auto start = std::chrono::steady_clock::now();
    matmul(w, x.data(), y.data(), m);
    best = std::min(best, seconds_since(start));
  }
  return 2.0 * n * n * m / best / 1e9;
}

}  // namespace thrifty
