// Keys and values of a page of the cache as fp32 rows, one a token: what Python reads. Included once per instruction
// set.
//
// Equals formats/kv.py to the bit: scale * code is exact in fp32, so that fusing it with the sum rounds no differently.
#pragma once
#include "attention/attention_page.hpp"

namespace thrifty::THRIFTY_ISA {

// Tokens low..high-1 of a page. keys: [dim][64], to: [high - low][dim].
static void turn_page(const float* keys, int low, int high, int dim, float* to) {
  for (int s = low; s < high; s++, to += dim)
    for (int c = 0; c < dim; c++) to[c] = keys[(size_t)c * kPage + s];
}

// keys, values: [high - low][dim]. scratch: attend_scratch(dim, 1).
static void read_page(const Span& span, int page, int low, int high, int dim, float* keys, float* values,
                      uint8_t* scratch) {
  Tile t = make_tile(1, dim, scratch);
  Block b{};
  b.span = &span, b.page = page, b.slots = high;
  convert(b, t);
  turn_page(b.keys32, low, high, dim, keys);
  for (int s = low; s < high; s++, values += dim)
    __builtin_memcpy(values, b.values32 + (size_t)s * t.dim, (size_t)dim * sizeof(float));
}

}  // namespace thrifty::THRIFTY_ISA
