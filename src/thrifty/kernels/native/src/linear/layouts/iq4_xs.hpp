// IQ4_XS: four bits into ggml's table, a sub-scale of six bits every 32 columns.
#pragma once
#include "linear/layouts/ggml_bits.hpp"
#include "linear/layouts/traits.hpp"

namespace thrifty {

struct IQ4_XS {
  static constexpr int kBlocks = kSuperblock, kBytes = 136;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p), b.sub[0] = get32(p + 4), b.sub[1] = get16(p + 2);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = get32(p + 8 + 16 * k + 4 * (v % 4)) >> (v / 4 * 4) & kNibbles;
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    put(p, b.scale), put(p + 2, (uint16_t)b.sub[1]), put(p + 4, b.sub[0]);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 4; v++)
        put(p + 8 + 16 * k + 4 * v, (b.codes[k][v] & kNibbles) | (b.codes[k][v + 4] & kNibbles) << 4);
  }
};

namespace layouts {

// scale, minimum: number i of a record's sub-scales and sub-minimums. `words` are the record's, of one row or of a
// vector of them.
struct iq4_xs {
  static constexpr LayoutTraits traits = {.name = "iq4_xs",
                                          .family = Family::superblocks,
                                          .codes = {4, 0, true, 128},
                                          .minimums = Minimums::never,
                                          .subs = {32, false, 96}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) {
    return words.less_32(words.six(0, 4 * i, 1, 2 * i));
  }
};

}  // namespace layouts

}  // namespace thrifty
