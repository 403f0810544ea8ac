// GGUF's blocks of one level: what int4, int5, int8 and iq4_nl are made of.
#pragma once
#include "linear/layouts/ggml_bits.hpp"

namespace thrifty {

// Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL: fp16 scale, fp16 minimum, fifth bits, nibbles of columns c and c + 16.
template <bool MINIMUM, bool FIFTH> struct Nibbles32 {
  static constexpr int kBlocks = 1, kHigh = MINIMUM ? 4 : 2, kLow = kHigh + (FIFTH ? 4 : 0), kBytes = kLow + 16;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p);
    if constexpr (MINIMUM) b.minimum = get16(p + 2);
    const uint32_t high = FIFTH ? get32(p + kHigh) : 0;
    for (int v = 0; v < 8; v++)
      b.codes[0][v] = (get32(p + kLow + 4 * (v % 4)) >> (v / 4 * 4) & kNibbles) | spread(high >> (4 * v)) << 4;
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    put(p, b.scale);
    if constexpr (MINIMUM) put(p + 2, b.minimum);
    for (int v = 0; v < 4; v++) put(p + kLow + 4 * v, (b.codes[0][v] & kNibbles) | (b.codes[0][v + 4] & kNibbles) << 4);
    if constexpr (!FIFTH) return;
    uint32_t high = 0;
    for (int v = 0; v < 8; v++) high |= gathered(b.codes[0][v] >> 4) << (4 * v);
    put(p + kHigh, high);
  }
};

struct Q8_0 {
  static constexpr int kBlocks = 1, kBytes = 34;
  static THRIFTY_SHARED void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p);
    for (int v = 0; v < 8; v++) b.codes[0][v] = get32(p + 2 + 4 * v) ^ 0x80808080u;
  }
  static THRIFTY_SHARED void write(const BlockBits& b, uint8_t* p) {
    put(p, b.scale);
    for (int v = 0; v < 8; v++) put(p + 2 + 4 * v, b.codes[0][v] ^ 0x80808080u);
  }
};

}  // namespace thrifty
