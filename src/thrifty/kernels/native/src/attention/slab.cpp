#include "attention/slab.hpp"

#include <stdexcept>
#include <string>

namespace thrifty {

Format known_format(int id) {
  if (id >= 0 && id < kFormats) return (Format)id;
  std::string known;
  for (int i = 0; i < kFormats; i++)
    known += (i ? ", " : "") + std::string(kFormatTraits[i].name) + "=" + std::to_string(i);
  throw std::invalid_argument("KV format id " + std::to_string(id) + " is unknown; " + known);
}

void check_slab_bytes(const char* name, int64_t bytes, int format, int capacity, int dim) {
  if (format < 0 || format >= kFormats || capacity < kPage || capacity % kPage || dim < 1) return;
  const size_t needed = slab_layout((Format)format, (size_t)capacity, (size_t)dim).bytes;
  if ((size_t)bytes >= needed) return;
  const std::string shape = std::to_string(capacity) + " slots and " + std::to_string(dim) + " channels";
  throw std::invalid_argument(std::string(name) + " has " + std::to_string(bytes) + " bytes; a slab of " + shape +
                              " needs " + std::to_string(needed));
}

}  // namespace thrifty
