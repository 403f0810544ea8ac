// Bounds of pages of keys, and what a query can score in them at most. Included once per instruction set.
#pragma once
#include "attention/attention_page.hpp"

namespace thrifty::THRIFTY_ISA {

// The nearest bf16 that is not below x (UP) or not above it.
template <bool UP> THRIFTY_INLINE uint16_t outward_bf16(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const bool exact = (u & 0xffffu) == 0, away = UP ? x > 0.0f : x < 0.0f;
  return (uint16_t)((u >> 16) + (!exact && away ? 1u : 0u));
}

// Slots low..high-1 of a block of keys: of every channel the greatest and the least number, as bf16 rounded away from
// what lies between. Slots whose bias is -inf are left out; false where no other is there. Behind the last slot memory
// may hold anything, also what is no number.
static bool page_bounds(const Span& span, int block, int low, int high, int dim, uint16_t* to, uint8_t* scratch) {
  const float infinity = __builtin_inff();
  float hidden[kPage];
  bool any = false;
  for (int i = 0; i < kPage; i++) {
    const bool live = i >= low && i < high && !(span.bias && span.bias[(size_t)block * kPage + i] == -infinity);
    hidden[i] = live ? 0.0f : -infinity, any = any || live;
  }
  if (!any) return false;
  Tile t = make_tile(1, dim, scratch);
  t.keys_only = true;
  Block b{};
  b.span = &span, b.page = block, b.slots = high;
  convert(b, t);
  const int width = bounds_width(dim);
  for (int c = 0; c < width; c++) {
    V most = set1(-infinity), least = set1(-infinity);  // of the numbers, and of their negatives
    for (int j = 0; j < 4 && c < dim; j++) {
      const V hide = load(hidden + j * kLanes),
              x = keep(load(b.keys32 + (size_t)c * kPage + j * kLanes), low - j * kLanes, high - j * kLanes, zero());
      most = max(most, add(x, hide)), least = max(least, sub(hide, x));
    }
    to[c] = c < dim ? outward_bf16<true>(reduce_max(most)) : 0;
    to[width + c] = c < dim ? outward_bf16<false>(-reduce_max(least)) : 0;
  }
  return true;
}

// A query [dim] as page_scores reads it: [greatest, least][width], its positive numbers and its negative ones.
static void split_query(const float* q, int dim, float* to) {
  const int width = bounds_width(dim);
  for (int c = 0; c < width; c += kLanes) {
    const V x = load_some(q + c, dim - c);
    store(to + c, max(x, zero())), store(to + width + c, min(x, zero()));
  }
}

// to[i] = sum over channels of max(q * greatest, q * least), of `pages` pages.
static void page_scores(const float* query, const uint16_t* bounds, int pages, int dim, float* to) {
  const int count = 2 * bounds_width(dim);
  for (int i = 0; i < pages; i++, bounds += count) {
    V sum = zero();
    for (int c = 0; c < count; c += kLanes) sum = fma(load(query + c), load_bf16(bounds + c), sum);
    to[i] = reduce_add(sum);
  }
}

}  // namespace thrifty::THRIFTY_ISA
