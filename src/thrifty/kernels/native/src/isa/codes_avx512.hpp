// Codes of weights and their products with activations on AVX-512.
#pragma once
#include "isa/simd_avx512.hpp"

namespace thrifty::THRIFTY_ISA {

THRIFTY_INLINE I broadcast4(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

// Sixteen 32-bit words.
using Words = __m512i;
THRIFTY_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
THRIFTY_INLINE Words load_short_words(const void* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
// BITS bits of each word from `shift` on.
template <int BITS> THRIFTY_INLINE Words field(Words x, int shift) {
  return _mm512_and_si512(_mm512_srli_epi32(x, (unsigned)shift), _mm512_set1_epi32((1 << BITS) - 1));
}
// Four bits of `low` below two of `high`.
THRIFTY_INLINE Words six_bits(Words low, int low_shift, Words high, int high_shift) {
  const Words l = _mm512_srli_epi32(low, (unsigned)low_shift),
              h = high_shift < 4 ? _mm512_slli_epi32(high, (unsigned)(4 - high_shift))
                                 : _mm512_srli_epi32(high, (unsigned)(high_shift - 4));
  return _mm512_and_si512(_mm512_ternarylogic_epi32(_mm512_set1_epi32(15), l, h, 0xca), _mm512_set1_epi32(63));
}
// Byte i of each word, signed.
THRIFTY_INLINE Words signed_byte(Words x, int i) {
  return _mm512_srai_epi32(_mm512_slli_epi32(x, (unsigned)(24 - 8 * i)), 24);
}
THRIFTY_INLINE V words_as_floats(Words x) { return _mm512_cvtepi32_ps(x); }

// x moved up by so many bits in halves of words; down if negative. What comes over from neighbouring bytes is for the
// caller to mask.
THRIFTY_INLINE I moved_up(I x, int bits) {
  return bits > 0 ? _mm512_slli_epi16(x, (unsigned)bits) : bits < 0 ? _mm512_srli_epi16(x, (unsigned)-bits) : x;
}

// What a register holds stays there: the compiler would rather read it from memory for each use, and loads are what few
// rows lack.
THRIFTY_INLINE I kept(I x) {
  asm("" : "+v"(x));
  return x;
}

// The lines of a block: in registers, or read where they are needed.
template <Codes C, bool KEPT> struct CodeBlock;
template <Codes C> struct CodeBlock<C, true> {
  static constexpr int kLines = C.bits();
  I lines[kLines];
  THRIFTY_SHARED explicit CodeBlock(const uint8_t* p) {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; i++) lines[i] = kept(_mm512_loadu_si512(p + 64 * i));
  }
  THRIFTY_SHARED I line(int i) const { return lines[i]; }
};
template <Codes C> struct CodeBlock<C, false> {
  const uint8_t* p;
  THRIFTY_SHARED explicit CodeBlock(const uint8_t* p) : p(p) {}
  THRIFTY_SHARED I line(int i) const { return _mm512_loadu_si512(p + 64 * i); }
};

// Vector v of a block's codes as they are stored, without sign; of a table the values plus 128.
template <Codes C, bool KEPT> THRIFTY_INLINE I code_vector(const CodeBlock<C, KEPT>& block, int v) {
  if constexpr (C.low == 8) return block.line(v);
  const I low = C.low == 4   ? moved_up(block.line(v % 4), v < 4 ? 0 : -4)
                : C.low == 1 ? moved_up(block.line(0), 1 - v)
                             : moved_up(block.line(v / 4), -2 * (v % 4));
  const I mask = _mm512_set1_epi8((char)(((1 << C.low) - 1) * C.step()));
  if constexpr (C.table)
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)kTable)),
                               _mm512_and_si512(low, mask));
  if constexpr (C.high == 0) return _mm512_and_si512(low, mask);
  const I high =
      C.high == 2 ? moved_up(block.line(C.low + v / 4), C.low - 2 * (v % 4)) : moved_up(block.line(C.low), C.low - v);
  return _mm512_and_si512(_mm512_ternarylogic_epi32(mask, low, high, 0xca),
                          _mm512_set1_epi8((char)((1 << C.bits()) - 1)));
}

// What the dots of vectors FIRST..FIRST+COUNT-1 begin with: -OFFSET * sum(q) of their columns.
template <int OFFSET, int FIRST, int COUNT> THRIFTY_INLINE I dots_start(const ActivationBlock& x) {
  if constexpr (OFFSET == 0) return _mm512_setzero_si512();
  I sum = _mm512_set1_epi32(FIRST == 0 && COUNT == 4 ? x.minus8_first : x.minus8);
  if constexpr (FIRST == 4) sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(x.minus8_first));
  if constexpr (OFFSET < 8) return _mm512_srai_epi32(sum, OFFSET == 4 ? 1 : OFFSET == 2 ? 2 : 3);
  return OFFSET == 8 ? sum : _mm512_slli_epi32(sum, OFFSET == 16 ? 1 : OFFSET == 32 ? 2 : 4);
}

// Exact int32 dot products of vectors FIRST..FIRST+COUNT-1 of a block of N neighbouring tiles (16 rows x 4 COUNT
// columns each) with M activation blocks, offsets of the codes taken off, as floats: d[n * M + i]. Each weight vector
// is unpacked once, each broadcast of activations serves all tiles.
template <int FIRST, int COUNT, int N, int M, Codes C, bool KEPT>
THRIFTY_INLINE void dots(const CodeBlock<C, KEPT>* blocks, const ActivationBlock* x, V* d) {
  static_assert((C.offset & (C.offset - 1)) == 0 && C.offset <= 128 && C.offset != 64);
  // High nibbles without a shift, sixteen times too large: the sum is shifted instead.
  constexpr bool kHighFirst =
      C.low == 4 && C.high == 0 && !C.table && COUNT == 8 && M == 1 && (C.offset == 0 || C.offset == 8);
  I a[N * M];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    a[i] = dots_start<kHighFirst ? 16 * C.offset : C.offset, FIRST, COUNT>(x[i]);
    if constexpr (N == 2) a[M + i] = a[i];
  }
  if constexpr (kHighFirst) {
    const I mask = _mm512_set1_epi8((char)0xf0);
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
      const I q = broadcast4(x->q + 16 + 4 * v);
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) a[n] = _mm512_dpbusd_epi32(a[n], _mm512_and_si512(blocks[n].line(v), mask), q);
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) a[n] = _mm512_srai_epi32(a[n], 4);
  }
#pragma GCC unroll 8
  for (int v = FIRST; v < FIRST + (kHighFirst ? 4 : COUNT); v++) {
    const I w = code_vector(blocks[0], v), other = N == 2 ? code_vector(blocks[N - 1], v) : w;
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const I q = broadcast4(x[i].q + 4 * v);
      a[i] = _mm512_dpbusd_epi32(a[i], w, q);
      if constexpr (N == 2) a[M + i] = _mm512_dpbusd_epi32(a[M + i], other, q);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < N * M; i++) d[i] = _mm512_cvtepi32_ps(a[i]);
}

// acc[lane] += w[lane][0] * x[0] + w[lane][1] * x[1] for a pair of bf16 columns.
THRIFTY_INLINE V dot_pair(V acc, const uint16_t* w, uint32_t x) {
  return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32((int)x));
}

}  // namespace thrifty::THRIFTY_ISA
