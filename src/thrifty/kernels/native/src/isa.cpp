#include "isa.hpp"

#include <atomic>
#include <stdexcept>

namespace thrifty {

namespace {

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
  __builtin_cpu_init();
#define THRIFTY_HAS(name) {name, (bool)__builtin_cpu_supports(name)}
  return {THRIFTY_HAS("avx2"),     THRIFTY_HAS("fma"),      THRIFTY_HAS("f16c"),     THRIFTY_HAS("avx512f"),    THRIFTY_HAS("avx512bw"),
          THRIFTY_HAS("avx512vl"), THRIFTY_HAS("avx512dq"), THRIFTY_HAS("avx512vnni"), THRIFTY_HAS("avx512bf16")};
#undef THRIFTY_HAS
#else
  return {};
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
  if (!isa_available(name)) throw std::invalid_argument("instruction set '" + name + "' is unknown or not supported by this processor; use avx512, avx2, portable or auto");
  chosen().store(find(name));
}

}  // namespace thrifty
