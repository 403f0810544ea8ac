// Q3_K: three bits, a sub-scale of six bits every 16 columns.
#pragma once
#include "linear/layouts/ggml_bits.hpp"
#include "linear/layouts/traits.hpp"

namespace thrifty {

struct Q3_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 110;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    const uint8_t* s = p + 96;
    b.scale = get16(p + 108);
    for (uint32_t& sub : b.sub) sub = 0;
    for (int i = 0; i < 16; i++)
      b.sub[i / 8] |= (uint32_t)(s[i % 8] >> (i / 8 * 4) & 15) << (4 * (i % 8)),
          b.sub[2] |= (uint32_t)(s[8 + i % 4] >> (i / 4 * 2) & 3) << (2 * i);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = crumbs(p + 32, k, v) | bit_of(p, k, v) << 2;
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    put_bits(b, 2, p), put_crumbs(b, 0, p + 32);
    uint8_t* s = p + 96;
    std::memset(s, 0, 12);
    for (int i = 0; i < 16; i++) {
      s[i % 8] = (uint8_t)(s[i % 8] | (b.sub[i / 8] >> (4 * (i % 8)) & 15u) << (i / 8 * 4));
      s[8 + i % 4] = (uint8_t)(s[8 + i % 4] | (b.sub[2] >> (2 * i) & 3u) << (i / 4 * 2));
    }
    put(p + 108, b.scale);
  }
};

namespace layouts {

// scale, minimum: number i of a record's sub-scales and sub-minimums. `words` are the record's, of one row or of a
// vector of them.
struct q3_k {
  static constexpr LayoutTraits traits = {.name = "q3_k",
                                          .family = Family::superblocks,
                                          .codes = {2, 1, false, 4},
                                          .minimums = Minimums::never,
                                          .subs = {16, false, 192}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) {
    return words.less_32(words.six(i / 8, 4 * (i % 8), 2, 2 * i));
  }
};

}  // namespace layouts

}  // namespace thrifty
