#include "attention/gather.hpp"

#include <cstring>
#include <stdexcept>

#include "pool.hpp"

namespace thrifty {

namespace {

// Slots that follow one another, in one page of the source and one of the target.
template <class T> struct Run {
  const T* from;
  size_t to, count;
};

template <class T> void copy_run(const Run<T>& run, size_t channel, T* page) {
  const T* const from = run.from + channel * kPage;
  T* const to = page + channel * kPage + run.to;
  if (run.count < 8)
    for (size_t i = 0; i < run.count; i++) to[i] = from[i];
  else memcpy(to, from, run.count * sizeof(T));
}

template <class T> void gather_head(const Gathering& head, int dim) {
  const size_t d = (size_t)dim;
  T* const keys = (T*)head.target;
  T* const values =
      (T*)(head.target + slab_layout(sizeof(T) == 4 ? Format::f32 : Format::bf16, (size_t)head.capacity, d).values);
  size_t place = 0;
  Run<T> runs[kPage];  // of the target's page in work
  for (const Chosen& part : head.parts) {
    const T* const from = (const T*)part.address;
    const T* const rows =
        (const T*)(part.address +
                   slab_layout(sizeof(T) == 4 ? Format::f32 : Format::bf16, (size_t)part.capacity, d).values);
    const int64_t* const slots = (const int64_t*)part.slots;
    for (size_t done = 0; done < (size_t)part.count;) {
      const size_t offset = place % kPage, room = kPage - offset, left = (size_t)part.count - done,
                   n = left < room ? left : room;
      size_t count = 0;
      for (size_t i = 0; i < n;) {
        const size_t slot = (size_t)slots[done + i];
        size_t length = 1;
        while (i + length < n && (size_t)slots[done + i + length] == slot + length && (slot + length) % kPage) length++;
        runs[count++] = {from + slot / kPage * kPage * d + slot % kPage, offset + i, length};
        memcpy(values + (place + i) * d, rows + slot * d, length * d * sizeof(T));
        i += length;
      }
      T* const page = keys + place / kPage * kPage * d;
      for (size_t c = 0; c < d; c++)
        for (size_t r = 0; r < count; r++) copy_run(runs[r], c, page);
      place += n, done += n;
    }
  }
}

void check(const Gathering& head, int dim) {
  const auto refuse = [](const char* message) { throw std::invalid_argument(message); };
  if (dim < 2 || dim % 2) refuse("gather: the head dimension must be even");
  long total = 0;
  const auto bad = [](uintptr_t address, int capacity) {
    return !address || address % 64 || capacity < kPage || capacity % kPage;
  };
  if (bad(head.target, head.capacity)) refuse("gather: slabs must be 64-byte aligned, not null, and of whole pages");
  for (const Chosen& part : head.parts) {
    if (bad(part.address, part.capacity) || part.count < 0 || (part.count && !part.slots))
      refuse("gather: slabs must be 64-byte aligned, not null, and of whole pages");
    for (int i = 0; i < part.count; i++)
      if (int64_t slot = ((const int64_t*)part.slots)[i]; slot < 0 || slot >= part.capacity)
        refuse("gather: a slot is outside its slab");
    total += part.count;
  }
  if (total > head.capacity) refuse("gather: the slots do not fit the slab");
}

}  // namespace

void gather(const std::vector<Gathering>& heads, Format format, int dim) {
  if (format_bits(format)) throw std::invalid_argument("gather takes slabs of f32 or bf16");
  for (const Gathering& head : heads) check(head, dim);
  Pool::shared().run(0, [&](Worker& w) {
    const int total = (int)heads.size();
    for (int i = w.begin(total); i < w.end(total); i++)
      format == Format::f32 ? gather_head<float>(heads[(size_t)i], dim) : gather_head<uint16_t>(heads[(size_t)i], dim);
  });
}

}  // namespace thrifty
