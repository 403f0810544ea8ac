#include "slab.hpp"

#include <stdexcept>
#include <string>

namespace thrifty {

Format known_format(int id) {
  if (id < 0 || id >= kFormats) throw std::invalid_argument("KV format id " + std::to_string(id) + " is unknown; f32=0, bf16=1, int8=2, int4=3, int2=4, int4g16=5, int2g16=6");
  return (Format)id;
}

int stored_dim(Format format, int dim) { return format_bits(format) ? (dim + 63) / 64 * 64 : dim; }

size_t slab_bytes(Format format, int capacity, int dim) {
  return slab_layout(format, (size_t)capacity, (size_t)stored_dim(format, dim)).bytes;
}

void check_slab_bytes(const char* name, int64_t bytes, int format, int capacity, int dim) {
  if (format < 0 || format >= kFormats || capacity < kPage || capacity % kPage || dim < 1) return;
  const size_t needed = slab_bytes((Format)format, capacity, dim);
  if ((size_t)bytes >= needed) return;
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(bytes) + " bytes; a slab of " + std::to_string(capacity) + " slots and " + std::to_string(dim) + " channels needs " + std::to_string(needed));
}

}  // namespace thrifty
