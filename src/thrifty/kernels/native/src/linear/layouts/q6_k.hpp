// Q6_K: six bits, a signed sub-scale of eight bits every 16 columns.
#pragma once
#include "linear/layouts/ggml_bits.hpp"
#include "linear/layouts/traits.hpp"

namespace thrifty {

struct Q6_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 210;
  static THRIFTY_SHARED int low_at(int k) { return 64 * (k / 4) + 32 * (k % 2); }
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    for (int i = 0; i < 4; i++) b.sub[i] = get32(p + 192 + 4 * i);
    b.scale = get16(p + 208);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++)
        b.codes[k][v] = (get32(p + low_at(k) + 4 * v) >> (k % 4 / 2 * 4) & kNibbles) | crumbs(p + 128, k, v) << 4;
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    for (int i = 0, k = 0; i < 4; i++, k = i / 2 * 4 + i % 2)
      for (int v = 0; v < 8; v++)
        put(p + low_at(k) + 4 * v, (b.codes[k][v] & kNibbles) | (b.codes[k + 2][v] & kNibbles) << 4);
    put_crumbs(b, 4, p + 128);
    for (int i = 0; i < 4; i++) put(p + 192 + 4 * i, b.sub[i]);
    put(p + 208, b.scale);
  }
};

namespace layouts {

// scale, minimum: number i of a record's sub-scales and sub-minimums. `words` are the record's, of one row or of a
// vector of them.
struct q6_k {
  static constexpr LayoutTraits traits = {.name = "q6_k",
                                          .family = Family::superblocks,
                                          .codes = {4, 2, false, 32},
                                          .minimums = Minimums::never,
                                          .subs = {16, false, 256}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) { return words.signed_byte(i / 4, i % 4); }
};

}  // namespace layouts

}  // namespace thrifty
