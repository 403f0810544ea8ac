// Codes of weights and their products with activations in plain C++.
#pragma once
#include "isa/simd_portable.hpp"

namespace thrifty::THRIFTY_ISA {

// Sixteen 32-bit words.
struct Words {
  uint32_t w[16];
};
THRIFTY_INLINE Words load_words(const void* p) {
  Words x;
  std::memcpy(&x, p, 64);
  return x;
}
THRIFTY_INLINE Words load_short_words(const void* p) {
  uint16_t h[16];
  std::memcpy(h, p, 32);
  Words x;
  for (int i = 0; i < 16; i++) x.w[i] = h[i];
  return x;
}
// BITS bits of each word from `shift` on.
template <int BITS> THRIFTY_INLINE Words field(Words x, int shift) {
  for (int i = 0; i < 16; i++) x.w[i] = x.w[i] >> shift & ((1u << BITS) - 1u);
  return x;
}
// Four bits of `low` below two of `high`.
THRIFTY_INLINE Words six_bits(Words low, int low_shift, Words high, int high_shift) {
  for (int i = 0; i < 16; i++) low.w[i] = (low.w[i] >> low_shift & 15u) | (high.w[i] >> high_shift & 3u) << 4;
  return low;
}
// Byte i of each word, signed.
THRIFTY_INLINE Words signed_byte(Words x, int i) {
  for (int j = 0; j < 16; j++) x.w[j] = (uint32_t)(int32_t)(int8_t)(uint8_t)(x.w[j] >> 8 * i);
  return x;
}
THRIFTY_INLINE V words_as_floats(Words x) {
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = (float)(int32_t)x.w[i];
  return load(f);
}

// Vector v of a block's codes: 64 bytes as they are stored, without sign; of a table the values plus 128.
template <Codes C> THRIFTY_INLINE void code_vector(const uint8_t* block, int v, uint8_t* to) {
  const uint8_t *low = block + 64 * (C.low == 8   ? v
                                     : C.low == 4 ? v % 4
                                     : C.low == 1 ? 0
                                                  : v / 4),
                *high = block + 64 * C.low + (C.high == 2 ? 64 * (v / 4) : 0);
  const int low_shift = C.low == 8   ? 0
                        : C.low == 4 ? v / 4 * 4
                        : C.low == 1 ? v
                                     : 2 * (v % 4),
            high_shift = C.high == 2 ? 2 * (v % 4) : v;
  for (int i = 0; i < 64; i++) {
    unsigned code = (unsigned)low[i] >> low_shift & ((1u << C.low) - 1u);
    if constexpr (C.high != 0) code |= ((unsigned)high[i] >> high_shift & ((1u << C.high) - 1u)) << C.low;
    to[i] = C.table ? kTable[code & 15] : (uint8_t)(code * (unsigned)C.step());
  }
}

template <Codes C, bool> struct CodeBlock {
  const uint8_t* p;
  THRIFTY_SHARED explicit CodeBlock(const uint8_t* p) : p(p) {}
};
THRIFTY_INLINE Words kept(Words x) { return x; }

// Exact int32 dot products of vectors FIRST..FIRST+COUNT-1 of a block (16 rows x 4 COUNT columns) with M activation
// blocks, offsets of the codes taken off, as floats.
template <int FIRST, int COUNT, int N, int M, Codes C, bool KEPT>
THRIFTY_INLINE void dots(const CodeBlock<C, KEPT>* block, const ActivationBlock* x, V* d) {
  static_assert(N == 1);
  const uint8_t* codes = block->p;
  uint8_t w[COUNT][64];
  for (int v = 0; v < COUNT; v++) code_vector<C>(codes, FIRST + v, w[v]);
  for (int i = 0; i < M; i++) {
    const int minus8 = COUNT == 8 ? x[i].minus8 : FIRST == 0 ? x[i].minus8_first : x[i].minus8 - x[i].minus8_first;
    const int start = less_offset(C.offset, minus8);
    float f[16];
    for (int row = 0; row < 16; row++) {
      int dot = start;
      for (int v = 0; v < COUNT; v++)
        for (int j = 0; j < 4; j++) dot += w[v][4 * row + j] * x[i].q[4 * (FIRST + v) + j];
      f[row] = (float)dot;
    }
    d[i] = load(f);
  }
}

THRIFTY_INLINE V dot_pair(V acc, const uint16_t* w, uint32_t x) {
  float a[16], even, odd;
  uint32_t low = x << 16, high = x & 0xffff0000u;
  std::memcpy(&even, &low, 4), std::memcpy(&odd, &high, 4);
  store(a, acc);
  for (int i = 0; i < 16; i++) {
    uint32_t bits[2] = {(uint32_t)w[2 * i] << 16, (uint32_t)w[2 * i + 1] << 16};
    float f[2];
    std::memcpy(f, bits, 8);
    a[i] = (a[i] + f[1] * odd) + f[0] * even;  // the second column first, as vdpbf16ps adds them
  }
  return load(a);
}

}  // namespace thrifty::THRIFTY_ISA
