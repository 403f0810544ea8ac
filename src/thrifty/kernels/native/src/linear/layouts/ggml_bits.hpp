// A block of a GGUF file on its way to a layout or back, and how ggml spreads bits over bytes (ggml-common.h,
// ggml-quants.c of llama.cpp).
#pragma once
#include <cstring>

#include "common.hpp"

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

}  // namespace thrifty
