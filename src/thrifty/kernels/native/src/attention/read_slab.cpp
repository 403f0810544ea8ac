#include "attention/read_slab.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"
#include "pool.hpp"
#include "attention/slab.hpp"

namespace thrifty {

void read_slab(const uint8_t* slab, Format format, int capacity, int dim, int start, int count, float* keys,
               float* values) {
  if ((uintptr_t)slab % 64 || capacity < kPage || capacity % kPage || dim < 2 || dim % 2)
    throw std::invalid_argument("a slab to read is 64-byte aligned, of whole pages and of an even head dimension");
  if (start < 0 || count < 0 || start > capacity - count)
    throw std::invalid_argument("tokens " + std::to_string(start) + ".." + std::to_string((int64_t)start + count) +
                                " are not in a slab of " + std::to_string(capacity));
  if (count == 0) return;
  const int first = start / kPage, pages = (start + count - 1) / kPage + 1 - first;
  Span span;
  span.base = (uint8_t*)slab, span.tokens = span.capacity = capacity, span.format = format;
  Pool::shared().run(kernels().attend_scratch(dim, 1), [&](Worker& w) {
    for (int page = first + w.begin(pages); page < first + w.end(pages); page++) {
      const int low = std::max(start - page * kPage, 0), high = std::min(start + count - page * kPage, kPage);
      const size_t row = (size_t)(page * kPage + low - start) * (size_t)dim;
      kernels().read_page(span, page, low, high, dim, keys + row, values + row, w.scratch);
    }
  });
}

}  // namespace thrifty
