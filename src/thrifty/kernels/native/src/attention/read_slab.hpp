// Slabs of the KV cache as fp32 rows, pages shared out over the pool.
#pragma once
#include <cstdint>

#include "types.hpp"

namespace thrifty {

// Tokens start..start+count-1 of a slab of any format -> keys, values [count][dim], as formats/kv.py reads them, to the
// bit. Throws std::invalid_argument.
void read_slab(const uint8_t* slab, Format format, int capacity, int dim, int start, int count, float* keys,
               float* values);

}  // namespace thrifty
