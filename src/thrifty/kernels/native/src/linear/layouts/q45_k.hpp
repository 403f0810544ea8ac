// Q4_K and Q5_K: four or five bits, a sub-scale and a sub-minimum of six bits every 32 columns.
#pragma once
#include "linear/layouts/ggml_bits.hpp"
#include "linear/layouts/traits.hpp"

namespace thrifty {

// Q4_K and Q5_K: fp16 d and dmin, 8 scales and 8 minimums of 6 bits in 12 bytes, fifth bits, nibbles.
template <bool FIFTH> struct Q45_K {
  static constexpr int kBlocks = kSuperblock, kLow = FIFTH ? 48 : 16, kBytes = kLow + 128;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    const uint8_t* s = p + 4;
    b.scale = get16(p), b.minimum = get16(p + 2);
    uint32_t scales = 0, minimums = 0, high = 0;
    for (int j = 0; j < 4; j++) {  // the first four whole, with the high bits of the other four above them
      scales |= (s[j] & 15u) << (4 * j) | (s[8 + j] & 15u) << (4 * j + 16);
      minimums |= (s[4 + j] & 15u) << (4 * j) | (uint32_t)(s[8 + j] >> 4) << (4 * j + 16);
      high |= (s[j] >> 4 & 3u) << (2 * j) | (uint32_t)(s[j] >> 6) << (2 * j + 8) |
              (s[4 + j] >> 4 & 3u) << (2 * j + 16) | (uint32_t)(s[4 + j] >> 6) << (2 * j + 24);
    }
    b.sub[0] = scales, b.sub[1] = minimums, b.sub[2] = high;
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++)
        b.codes[k][v] = (get32(p + kLow + 32 * (k / 2) + 4 * v) >> (k % 2 * 4) & kNibbles) |
                        (FIFTH ? bit_of(p + 16, k, v) << 4 : 0);
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    uint8_t* s = p + 4;
    put(p, b.scale), put(p + 2, b.minimum);
    for (int j = 0; j < 4; j++) {
      s[j] = (uint8_t)((b.sub[0] >> (4 * j) & 15u) | (b.sub[2] >> (2 * j) & 3u) << 4 |
                       (b.sub[2] >> (2 * j + 8) & 3u) << 6);
      s[4 + j] = (uint8_t)((b.sub[1] >> (4 * j) & 15u) | (b.sub[2] >> (2 * j + 16) & 3u) << 4 |
                           (b.sub[2] >> (2 * j + 24) & 3u) << 6);
      s[8 + j] = (uint8_t)((b.sub[0] >> (4 * j + 16) & 15u) | (b.sub[1] >> (4 * j + 16) & 15u) << 4);
    }
    if constexpr (FIFTH) put_bits(b, 4, p + 16);
    for (int k = 0; k < kSuperblock; k += 2)
      for (int v = 0; v < 8; v++)
        put(p + kLow + 16 * k + 4 * v, (b.codes[k][v] & kNibbles) | (b.codes[k + 1][v] & kNibbles) << 4);
  }
};

namespace layouts {

// scale, minimum: number i of a record's sub-scales and sub-minimums. `words` are the record's, of one row or of a
// vector of them.
struct q4_k {
  static constexpr LayoutTraits traits = {.name = "q4_k",
                                          .family = Family::superblocks,
                                          .codes = {4, 0, false, 0},
                                          .minimums = Minimums::always,
                                          .subs = {32, true, 192}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) { return words.six(0, 4 * i, 2, 2 * i); }
  template <class W> static THRIFTY_SHARED auto minimum(const W& words, int i) {
    return words.six(1, 4 * i, 2, 16 + 2 * i);
  }
};
struct q5_k {
  static constexpr LayoutTraits traits = {.name = "q5_k",
                                          .family = Family::superblocks,
                                          .codes = {4, 1, false, 0},
                                          .minimums = Minimums::always,
                                          .subs = {32, true, 192}};
  template <class W> static THRIFTY_SHARED auto scale(const W& words, int i) { return words.six(0, 4 * i, 2, 2 * i); }
  template <class W> static THRIFTY_SHARED auto minimum(const W& words, int i) {
    return words.six(1, 4 * i, 2, 16 + 2 * i);
  }
};

}  // namespace layouts

}  // namespace thrifty
