// ggml's quantised blocks: where the codes, sub-scales and scales of each type lie (ggml-common.h, ggml-quants.c of
// llama.cpp).
#pragma once
#include <cstring>

#include "types.hpp"

namespace thrifty {

// A block or superblock of one row. Words hold the codes of four columns, a byte each.
struct BlockBits {
  uint32_t codes[kSuperblock][8];
  uint32_t sub[4];  // of the record's vectors of sub-scales, this lane's word
  uint16_t scale, minimum;
};

constexpr uint32_t kNibbles = 0x0f0f0f0fu, kCrumbs = 0x03030303u,
                   kOnes = 0x01010101u;  // four, two and one low bits of every byte

THRIFTY_SHARED uint32_t get32(const uint8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}
THRIFTY_SHARED uint16_t get16(const uint8_t* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}
THRIFTY_SHARED void put(uint8_t* p, uint32_t x) { std::memcpy(p, &x, 4); }
THRIFTY_SHARED void put(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }

// Four bits to the low bits of four bytes, and back.
THRIFTY_SHARED uint32_t spread(uint32_t bits) { return (bits & 15u) * 0x00204081u & kOnes; }
THRIFTY_SHARED uint32_t gathered(uint32_t bytes) { return (bytes & kOnes) * 0x10204080u >> 28; }

// Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL: fp16 scale, fp16 minimum, fifth bits, nibbles of columns c and c + 16.
template <bool MINIMUM, bool FIFTH> struct Nibbles32 {
  static constexpr int kBlocks = 1, kHigh = MINIMUM ? 4 : 2, kLow = kHigh + (FIFTH ? 4 : 0), kBytes = kLow + 16;
  static void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p);
    if constexpr (MINIMUM) b.minimum = get16(p + 2);
    const uint32_t high = FIFTH ? get32(p + kHigh) : 0;
    for (int v = 0; v < 8; v++)
      b.codes[0][v] = (get32(p + kLow + 4 * (v % 4)) >> (v / 4 * 4) & kNibbles) | spread(high >> (4 * v)) << 4;
  }
  static void write(const BlockBits& b, uint8_t* p) {
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
  static void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p);
    for (int v = 0; v < 8; v++) b.codes[0][v] = get32(p + 2 + 4 * v) ^ 0x80808080u;
  }
  static void write(const BlockBits& b, uint8_t* p) {
    put(p, b.scale);
    for (int v = 0; v < 8; v++) put(p + 2 + 4 * v, b.codes[0][v] ^ 0x80808080u);
  }
};

// Two bits of block b at bits 2 (b % 4) of 32 bytes for four blocks, as Q2_K, Q3_K and the high bits of Q6_K have them.
THRIFTY_SHARED uint32_t crumbs(const uint8_t* p, int block, int v) {
  return get32(p + 32 * (block / 4) + 4 * v) >> (2 * (block % 4)) & kCrumbs;
}
THRIFTY_SHARED void put_crumbs(const BlockBits& b, int shift, uint8_t* p) {
  for (int half = 0; half < 2; half++)
    for (int v = 0; v < 8; v++) {
      uint32_t x = 0;
      for (int k = 0; k < 4; k++) x |= (b.codes[4 * half + k][v] >> shift & kCrumbs) << (2 * k);
      put(p + 32 * half + 4 * v, x);
    }
}
// One bit of block b at bit b of 32 bytes, as Q3_K and Q5_K have it.
THRIFTY_SHARED uint32_t bit_of(const uint8_t* p, int block, int v) { return get32(p + 4 * v) >> block & kOnes; }
THRIFTY_SHARED void put_bits(const BlockBits& b, int shift, uint8_t* p) {
  for (int v = 0; v < 8; v++) {
    uint32_t x = 0;
    for (int k = 0; k < kSuperblock; k++) x |= (b.codes[k][v] >> shift & kOnes) << k;
    put(p + 4 * v, x);
  }
}

struct Q2_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 84;
  static void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p + 80), b.minimum = get16(p + 82);
    for (uint32_t& sub : b.sub) sub = 0;
    for (int i = 0; i < 16; i++)
      b.sub[i / 8] |= (p[i] & 15u) << (4 * (i % 8)), b.sub[2 + i / 8] |= (uint32_t)(p[i] >> 4) << (4 * (i % 8));
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = crumbs(p + 16, k, v);
  }
  static void write(const BlockBits& b, uint8_t* p) {
    for (int i = 0; i < 16; i++)
      p[i] = (uint8_t)((b.sub[i / 8] >> (4 * (i % 8)) & 15u) | (b.sub[2 + i / 8] >> (4 * (i % 8)) & 15u) << 4);
    put_crumbs(b, 0, p + 16);
    put(p + 80, b.scale), put(p + 82, b.minimum);
  }
};

struct Q3_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 110;
  static void read(const uint8_t* p, BlockBits& b) {
    const uint8_t* s = p + 96;
    b.scale = get16(p + 108);
    for (uint32_t& sub : b.sub) sub = 0;
    for (int i = 0; i < 16; i++)
      b.sub[i / 8] |= (uint32_t)(s[i % 8] >> (i / 8 * 4) & 15) << (4 * (i % 8)),
          b.sub[2] |= (uint32_t)(s[8 + i % 4] >> (i / 4 * 2) & 3) << (2 * i);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = crumbs(p + 32, k, v) | bit_of(p, k, v) << 2;
  }
  static void write(const BlockBits& b, uint8_t* p) {
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

// Q4_K and Q5_K: fp16 d and dmin, 8 scales and 8 minimums of 6 bits in 12 bytes, fifth bits, nibbles.
template <bool FIFTH> struct Q45_K {
  static constexpr int kBlocks = kSuperblock, kLow = FIFTH ? 48 : 16, kBytes = kLow + 128;
  static void read(const uint8_t* p, BlockBits& b) {
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
  static void write(const BlockBits& b, uint8_t* p) {
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

struct Q6_K {
  static constexpr int kBlocks = kSuperblock, kBytes = 210;
  static int low_at(int k) { return 64 * (k / 4) + 32 * (k % 2); }
  static void read(const uint8_t* p, BlockBits& b) {
    for (int i = 0; i < 4; i++) b.sub[i] = get32(p + 192 + 4 * i);
    b.scale = get16(p + 208);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++)
        b.codes[k][v] = (get32(p + low_at(k) + 4 * v) >> (k % 4 / 2 * 4) & kNibbles) | crumbs(p + 128, k, v) << 4;
  }
  static void write(const BlockBits& b, uint8_t* p) {
    for (int k : {0, 1, 4, 5})
      for (int v = 0; v < 8; v++)
        put(p + low_at(k) + 4 * v, (b.codes[k][v] & kNibbles) | (b.codes[k + 2][v] & kNibbles) << 4);
    put_crumbs(b, 4, p + 128);
    for (int i = 0; i < 4; i++) put(p + 192 + 4 * i, b.sub[i]);
    put(p + 208, b.scale);
  }
};

struct IQ4_XS {
  static constexpr int kBlocks = kSuperblock, kBytes = 136;
  static void read(const uint8_t* p, BlockBits& b) {
    b.scale = get16(p), b.sub[0] = get32(p + 4), b.sub[1] = get16(p + 2);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 8; v++) b.codes[k][v] = get32(p + 8 + 16 * k + 4 * (v % 4)) >> (v / 4 * 4) & kNibbles;
  }
  static void write(const BlockBits& b, uint8_t* p) {
    put(p, b.scale), put(p + 2, (uint16_t)b.sub[1]), put(p + 4, b.sub[0]);
    for (int k = 0; k < kSuperblock; k++)
      for (int v = 0; v < 4; v++)
        put(p + 8 + 16 * k + 4 * v, (b.codes[k][v] & kNibbles) | (b.codes[k][v + 4] & kNibbles) << 4);
  }
};

}  // namespace thrifty
