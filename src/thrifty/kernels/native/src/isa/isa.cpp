#include "isa/isa.hpp"

#include <atomic>
#include <cstdint>
#include <stdexcept>

#if defined(THRIFTY_X86)
#include <cpuid.h>
#endif

namespace thrifty {

namespace {

#if defined(THRIFTY_X86)
// CPUID, asked here: what compilers bring for it isn't the same everywhere (Zig's says no to everything).
struct Leaf {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Leaf leaf(uint32_t number, uint32_t part) {
  Leaf found;
  __get_cpuid_count(number, part, &found.a, &found.b, &found.c, &found.d);
  return found;
}

// Which registers the operating system saves: bits 1 and 2 those of AVX, 5 to 7 those of AVX-512.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}
#endif

const Kernels* find(const std::string& name) {
#if defined(THRIFTY_X86)
  if (name == "avx512") return kernels_avx512();
  if (name == "avx2") return kernels_avx2();
#endif
  return name == "portable" ? kernels_portable() : nullptr;
}

const Kernels* best() {
  for (const char* name : {"avx512", "avx2"})
    if (isa_available(name)) return find(name);
  return kernels_portable();
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{best()};
  return table;
}

}  // namespace

std::vector<std::pair<std::string, bool>> cpu_features() {
#if defined(THRIFTY_X86)
  const Leaf one = leaf(1, 0), seven = leaf(7, 0), more = seven.a >= 1 ? leaf(7, 1) : Leaf{};
  const bool known = one.c >> 27 & 1;  // the system tells which registers it saves
  const uint64_t saved = known ? saved_registers() : 0;
  const bool avx = (saved & 0x06) == 0x06, avx512 = avx && (saved & 0xe0) == 0xe0;
  const auto has = [](bool registers, uint32_t word, int bit) { return registers && (word >> bit & 1); };
  return {{"avx2", has(avx, seven.b, 5)},         {"fma", has(avx, one.c, 12)},
          {"f16c", has(avx, one.c, 29)},          {"avx512f", has(avx512, seven.b, 16)},
          {"avx512bw", has(avx512, seven.b, 30)}, {"avx512vl", has(avx512, seven.b, 31)},
          {"avx512dq", has(avx512, seven.b, 17)}, {"avx512vnni", has(avx512, seven.c, 11)},
          {"avx512bf16", has(avx512, more.a, 5)}};
#else
  return {};
#endif
}

bool has_vector_popcount() {
#if defined(THRIFTY_X86)
  static const bool has = isa_available("avx512") && (leaf(7, 0).c >> 14 & 1);
  return has;
#else
  return false;
#endif
}

bool isa_available(const std::string& name) {
  if (name == "portable") return true;
  if (name != "avx512" && name != "avx2") return false;
  const auto features = cpu_features();
  if (features.empty()) return false;
  for (const auto& [feature, present] : features)
    if (!present && (name == "avx512" || feature.rfind("avx512", 0) != 0)) return false;
  return true;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) {
  if (name == "auto") return chosen().store(best());
  if (!isa_available(name))
    throw std::invalid_argument("instruction set '" + name +
                                "' is unknown or not supported by this processor; use avx512, avx2, portable or auto");
  chosen().store(find(name));
}

}  // namespace thrifty
