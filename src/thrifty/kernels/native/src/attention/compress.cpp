#include "attention/compress_driver.hpp"

#include <atomic>
#include <stdexcept>

#include "isa/isa.hpp"
#include "pool.hpp"
#include "types.hpp"

namespace thrifty {

bool compress(const SlabRows& from, const SlabRows& to, int count, int dim, int first_page, int tokens) {
  const auto refuse = [](const char* message) { throw std::invalid_argument(message); };
  if (!from.address || !to.address || from.address % 64 || to.address % 64 || from.stride % 64 || to.stride % 64)
    refuse("slabs must be 64-byte aligned and not null");
  if (format_bits(from.format) || !format_bits(to.format))
    refuse("compress goes from f32 or bf16 to a format of codes");
  if (dim < 2 || dim % 2 || count < 0 || tokens < 0 || first_page < 0)
    refuse("compress needs an even head dimension, and no negative sizes");
  if (from.capacity % kPage || to.capacity % kPage || first_page * kPage + tokens > from.capacity ||
      tokens > to.capacity)
    refuse("compress: the tokens do not fit the slabs");
  const int pages = (tokens + kPage - 1) / kPage, total = pages * count;
  std::atomic<bool> fine{true};
  Pool::shared().run(0, [&](Worker& w) {
    for (int i = w.begin(total); i < w.end(total); i++) {
      const int row = i / pages, page = i % pages, left = tokens - page * kPage;
      Span source, target;
      source.base = (uint8_t*)from.address + (size_t)row * from.stride, source.capacity = from.capacity,
      source.format = from.format;
      target.base = (uint8_t*)to.address + (size_t)row * to.stride, target.capacity = to.capacity,
      target.format = to.format;
      if (!kernels().compress_page(source, first_page + page, left < kPage ? left : kPage, dim, target, page))
        fine = false;
    }
  });
  return fine;
}

}  // namespace thrifty
