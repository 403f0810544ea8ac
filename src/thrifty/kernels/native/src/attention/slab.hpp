// How long the slabs of the KV cache are.
#pragma once
#include <cstdint>

#include "types.hpp"

namespace thrifty {

Format known_format(int id);  // throws std::invalid_argument

// Throws std::invalid_argument where `bytes` are fewer than a slab needs. Says nothing of a format or a capacity that
// no slab has: who uses the slab refuses these.
void check_slab_bytes(const char* name, int64_t bytes, int format, int capacity, int dim);

}  // namespace thrifty
