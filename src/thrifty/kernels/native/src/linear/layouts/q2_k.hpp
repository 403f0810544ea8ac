// Q2_K: two bits, a sub-scale and a sub-minimum of four bits every 16 columns.
#pragma once
#include "linear/layouts/ggml_bits.hpp"
#include "linear/layouts/traits.hpp"

namespace thrifty {

struct Q2_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 84;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p + 80), b.minimum = get16(p + 82);
    for (uint32_t& sub : b.sub) sub = 0;
    for (int i = 0; i < 16; i++)
      b.sub[i / 8] |= (p[i] & 15u) << (4 * (i % 8)), b.sub[2 + i / 8] |= (uint32_t)(p[i] >> 4) << (4 * (i % 8));
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = crumbs(p + 16, k, v);
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    for (int i = 0; i < 16; i++)
      p[i] = (uint8_t)((b.sub[i / 8] >> (4 * (i % 8)) & 15u) | (b.sub[2 + i / 8] >> (4 * (i % 8)) & 15u) << 4);
    put_crumbs(b, 0, p + 16);
    put(p + 80, b.scale), put(p + 82, b.minimum);
  }
};

namespace layouts {

// scale, minimum: number i of a record's sub-scales and sub-minimums. `words` are the record's, of one row or of a
// vector of them.
struct q2_k {
  static constexpr LayoutTraits traits = {.name = "q2_k",
                                          .family = Family::superblocks,
                                          .codes = {2, 0, false, 0},
                                          .minimums = Minimums::always,
                                          .subs = {16, true, 256}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) {
    return words.nibble(i / 8, 4 * (i % 8));
  }
  template <class W> static THRIFTY_SHARED auto minimum(const W& words, int i) {
    return words.nibble(2 + i / 8, 4 * (i % 8));
  }
};

}  // namespace layouts

}  // namespace thrifty
