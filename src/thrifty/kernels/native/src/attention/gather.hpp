// Chosen slots of full-precision slabs of the KV cache, put one after the other: what an eviction leaves.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.hpp"

namespace thrifty {

struct Chosen {  // some slots of one head's slab
  uintptr_t address;
  int capacity;
  uintptr_t slots;  // int64
  int count;
};

// One head: the chosen slots of all `parts`, in order -> slots 0.. of a slab of the same format.
struct Gathering {
  uintptr_t target;
  int capacity;
  std::vector<Chosen> parts;
};

// Heads are shared out over the pool. Throws std::invalid_argument.
void gather(const std::vector<Gathering>& heads, Format format, int dim);

}  // namespace thrifty
