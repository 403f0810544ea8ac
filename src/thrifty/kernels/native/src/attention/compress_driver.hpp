// Full-precision slabs of the KV cache to quantised ones, pages shared out over the pool.
#pragma once
#include <cstddef>
#include <cstdint>

#include "types.hpp"

namespace thrifty {

struct SlabRows {  // slabs at equal distances
  uintptr_t address;
  size_t stride;
  Format format;
  int capacity;
};

// Pages first_page.. of `count` slabs -> pages 0.. of as many. Equals kv_batch.quantise to the bit. False where some
// numbers are not finite or beyond float16. Throws std::invalid_argument.
bool compress(const SlabRows& from, const SlabRows& to, int count, int dim, int first_page, int tokens);

}  // namespace thrifty
