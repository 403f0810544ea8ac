// Codes of weights and their products with activations on AVX2.
#pragma once
#include "isa/simd_avx2.hpp"

namespace thrifty::THRIFTY_ISA {

THRIFTY_INLINE I broadcast4(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Sixteen 32-bit words.
struct Words {
  I a, b;
};
THRIFTY_INLINE Words load_words(const void* p) {
  return {_mm256_loadu_si256((const I*)p), _mm256_loadu_si256((const I*)p + 1)};
}
THRIFTY_INLINE Words load_short_words(const void* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1))};
}
// BITS bits of each word from `shift` on.
template <int BITS> THRIFTY_INLINE Words field(Words x, int shift) {
  const I mask = _mm256_set1_epi32((1 << BITS) - 1);
  return {_mm256_and_si256(_mm256_srli_epi32(x.a, shift), mask), _mm256_and_si256(_mm256_srli_epi32(x.b, shift), mask)};
}
// Four bits of `low` below two of `high`.
THRIFTY_INLINE Words six_bits(Words low, int low_shift, Words high, int high_shift) {
  const Words l = field<4>(low, low_shift), h = field<2>(high, high_shift);
  return {_mm256_or_si256(l.a, _mm256_slli_epi32(h.a, 4)), _mm256_or_si256(l.b, _mm256_slli_epi32(h.b, 4))};
}
// Byte i of each word, signed.
THRIFTY_INLINE Words signed_byte(Words x, int i) {
  return {_mm256_srai_epi32(_mm256_slli_epi32(x.a, 24 - 8 * i), 24),
          _mm256_srai_epi32(_mm256_slli_epi32(x.b, 24 - 8 * i), 24)};
}
THRIFTY_INLINE V words_as_floats(Words x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

// x moved up by so many bits in halves of words; down if negative. What comes over from neighbouring bytes is for the
// caller to mask.
THRIFTY_INLINE I moved_up(I x, int bits) {
  return bits > 0 ? _mm256_slli_epi16(x, bits) : bits < 0 ? _mm256_srli_epi16(x, -bits) : x;
}

// Vector v of a block's codes for eight lanes, `block` at the first of them: as stored, without sign; of 8 bits and of
// a table the signed values.
template <Codes C> THRIFTY_INLINE I code_vector(const uint8_t* block, int v) {
  const auto line = [&](int i)
                        __attribute__((always_inline)) { return _mm256_loadu_si256((const I*)(block + 64 * i)); };
  if constexpr (C.low == 8) return _mm256_xor_si256(line(v), _mm256_set1_epi8((char)0x80));
  const I mask = _mm256_set1_epi8((char)(((1 << C.low) - 1) * C.step()));
  const I low = _mm256_and_si256(C.low == 4   ? moved_up(line(v % 4), v < 4 ? 0 : -4)
                                 : C.low == 1 ? moved_up(line(0), 1 - v)
                                              : moved_up(line(v / 4), -2 * (v % 4)),
                                 mask);
  if constexpr (C.table) {
    const __m128i values = _mm_xor_si128(_mm_loadu_si128((const __m128i*)kTable), _mm_set1_epi8((char)0x80));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), low);
  }
  if constexpr (C.high == 0) return low;
  const I high = C.high == 2 ? moved_up(line(C.low + v / 4), C.low - 2 * (v % 4)) : moved_up(line(C.low), C.low - v);
  return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8((char)(((1 << C.high) - 1) << C.low))));
}

// Vectors whose pair sums add up in int16: 2 * 127 * the largest code each.
THRIFTY_SHARED constexpr int vectors_in_int16(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : 2; }

// Dots of eight rows (one half of the tile) with one activation block. Signed codes, |code| <= 128: |code| * |x| twice
// is at most 32512, so the signed form never saturates.
template <Codes C, int FIRST, int COUNT> THRIFTY_INLINE __m256 half_dots(const I* w, const ActivationBlock& x) {
  const I ones = _mm256_set1_epi16(1);
  I dot = _mm256_setzero_si256();
  if constexpr (C.low == 8 || C.table) {
    for (int v = 0; v < COUNT; v++) {
      const I pairs =
          _mm256_maddubs_epi16(_mm256_abs_epi8(w[v]), _mm256_sign_epi8(broadcast4(x.q + 4 * (FIRST + v)), w[v]));
      dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
    }
  } else {
    constexpr int kAtOnce = vectors_in_int16(C.bits()) < COUNT ? vectors_in_int16(C.bits()) : COUNT;
    for (int v = 0; v < COUNT; v += kAtOnce) {
      I pairs = _mm256_maddubs_epi16(w[v], broadcast4(x.q + 4 * (FIRST + v)));
      for (int u = v + 1; u < v + kAtOnce; u++)
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[u], broadcast4(x.q + 4 * (FIRST + u))));
      dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
    }
    if constexpr (C.offset != 0) {
      const int minus8 = COUNT == 8 ? x.minus8 : FIRST == 0 ? x.minus8_first : x.minus8 - x.minus8_first;
      dot = _mm256_add_epi32(dot, _mm256_set1_epi32(less_offset(C.offset, minus8)));
    }
  }
  return _mm256_cvtepi32_ps(dot);
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
  I w[COUNT];
  for (int v = 0; v < COUNT; v++) w[v] = code_vector<C>(codes, FIRST + v);
  for (int i = 0; i < M; i++) d[i].a = half_dots<C, FIRST, COUNT>(w, x[i]);
  for (int v = 0; v < COUNT; v++) w[v] = code_vector<C>(codes + 32, FIRST + v);
  for (int i = 0; i < M; i++) d[i].b = half_dots<C, FIRST, COUNT>(w, x[i]);
}

// The second column first, as vdpbf16ps adds them.
THRIFTY_INLINE __m256 dot_pair8(__m256 acc, const uint16_t* w, __m256 even, __m256 odd) {
  I x = _mm256_loadu_si256((const I*)w);
  acc = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u))), odd, acc);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), even, acc);
}
THRIFTY_INLINE V dot_pair(V acc, const uint16_t* w, uint32_t x) {
  __m256 even = _mm256_castsi256_ps(_mm256_set1_epi32((int)(x << 16))),
         odd = _mm256_castsi256_ps(_mm256_set1_epi32((int)(x & 0xffff0000u)));
  return {dot_pair8(acc.a, w, even, odd), dot_pair8(acc.b, w + 16, even, odd)};
}

}  // namespace thrifty::THRIFTY_ISA
