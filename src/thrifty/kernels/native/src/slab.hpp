// How long the slabs of the KV cache are.
#pragma once
#include <cstdint>

#include "types.hpp"

namespace thrifty {

Format known_format(int id);  // throws std::invalid_argument

// Channels of a slab: codes are of whole groups of 64.
int stored_dim(Format format, int dim);

// Bytes of a slab as formats/kv.py counts them.
size_t slab_bytes(Format format, int capacity, int dim);

// Throws std::invalid_argument where `bytes` are fewer than a slab needs. Says nothing of a format or a capacity that no
// slab has: who uses the slab refuses these.
void check_slab_bytes(const char* name, int64_t bytes, int format, int capacity, int dim);

}  // namespace thrifty
