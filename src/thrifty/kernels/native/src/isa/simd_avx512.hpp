// Sixteen floats in one AVX-512 register (F, BW, VL, DQ, VNNI, BF16).
#pragma once
#include <immintrin.h>

#include <cstring>

#include "types.hpp"

#define THRIFTY_INLINE static inline __attribute__((always_inline))

namespace thrifty::THRIFTY_ISA {

using V = __m512;
using I = __m512i;
constexpr const char* kName = "avx512";
constexpr bool kPairsOfTiles = true;
constexpr int kScoreRows = 6, kScoreVectors = 4;  // register tile of attention

THRIFTY_INLINE V zero() { return _mm512_setzero_ps(); }
THRIFTY_INLINE V set1(float x) { return _mm512_set1_ps(x); }
THRIFTY_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
THRIFTY_INLINE void store(float* p, V v) { _mm512_storeu_ps(p, v); }
THRIFTY_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
THRIFTY_INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
THRIFTY_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
THRIFTY_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
THRIFTY_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
// a * b - c, rounded once
THRIFTY_INLINE V fms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }
THRIFTY_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
THRIFTY_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
THRIFTY_INLINE V absolute(V a) { return _mm512_abs_ps(a); }
THRIFTY_INLINE V round_even(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
THRIFTY_INLINE float reduce_max(V a) { return _mm512_reduce_max_ps(a); }
THRIFTY_INLINE float reduce_add(V a) { return _mm512_reduce_add_ps(a); }
#define THRIFTY_ROWS 1  // its own store_first and reductions of rows; elementwise.hpp has those of the others
THRIFTY_INLINE void store_first(float* p, V v, int count) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1u), v);
}
// Lane r: all lanes of x[r] put together with `join`, R <= 8, in an order that does not depend on r.
template <int R, class Join> THRIFTY_INLINE V reduce_rows(const V* x, Join join) {
  static_assert(R <= 8);
  const auto pairs = [&](V a, V b) __attribute__((always_inline)) {
    return _mm512_castps_pd(join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  };
  const auto four = [&](int r) __attribute__((always_inline)) {  // 128 bits at a time: rows r..r+3
    const auto at = [&](int i) __attribute__((always_inline)) { return x[r + i < R ? r + i : R - 1]; };
    const __m512d u = pairs(at(0), at(1)), v = pairs(at(2), at(3));
    return join(_mm512_castpd_ps(_mm512_unpacklo_pd(u, v)), _mm512_castpd_ps(_mm512_unpackhi_pd(u, v)));
  };
  const V low = four(0), high = R > 4 ? four(4) : low;
  const V half = join(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xee));
  return join(_mm512_shuffle_f32x4(half, half, 0x88), _mm512_shuffle_f32x4(half, half, 0xdd));
}
template <int R> THRIFTY_INLINE V reduce_rows_max(const V* x) {
  return reduce_rows<R>(x, [](V a, V b) __attribute__((always_inline)) { return _mm512_max_ps(a, b); });
}
template <int R> THRIFTY_INLINE V reduce_rows_add(const V* x) {
  return reduce_rows<R>(x, [](V a, V b) __attribute__((always_inline)) { return _mm512_add_ps(a, b); });
}
THRIFTY_INLINE uint16_t float_to_half(float x) { return (uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
THRIFTY_INLINE V load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
THRIFTY_INLINE V load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
THRIFTY_INLINE float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
// Lanes lo..hi-1 of a, the other lanes of b.
THRIFTY_INLINE V keep(V a, int lo, int hi, V b) {
  unsigned high = hi >= 16  ? 0xffffu
                  : hi <= 0 ? 0u
                            : (1u << hi) - 1u,
           low = lo <= 0    ? 0u
                 : lo >= 16 ? 0xffffu
                            : (1u << lo) - 1u;
  return _mm512_mask_blend_ps((__mmask16)(high & ~low), b, a);
}
THRIFTY_INLINE V zero_below(V value, V x, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), value);
}
// p * 2^n, where e^x = p * 2^n: 0 where that is too small to be normal.
constexpr float kExponentialFloor = -104.0f, kPowerFloor = -150.0f;
THRIFTY_INLINE V times_power_of_two(V p, V n, V, float) { return _mm512_scalef_ps(p, n); }
// Whole numbers, -127..127, to bytes; returns their sum and gives that of the first. Taken from registers: loading what
// was just stored in two halves waits.
THRIFTY_INLINE int store_int8x32(int8_t* p, int* first, V a, V b) {
  const __m256i bytes =
      _mm256_set_m128i(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(b)), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
  _mm256_storeu_si256((__m256i*)p, bytes);
  const __m256i x = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  const __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
  __m128i s = _mm_add_epi32(_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  *first = _mm_cvtsi128_si32(s);
  return *first + _mm_extract_epi32(s, 2);
}
// Two vectors of floats -> bf16, nearest even.
THRIFTY_INLINE void store_bf16(uint16_t* p, V a, V b) { _mm512_storeu_si512(p, (I)_mm512_cvtne2ps_pbh(b, a)); }

// Row e of the 16 lanes of a vector of codes (formats/kv.py, pack_lanes).
template <int B> THRIFTY_INLINE V unpack(const uint8_t* p, int e) {
  const I x = _mm512_srl_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(16 * (e % 2) + B * (e / 2)));
  return _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32((1 << B) - 1)));
}

// Products of pairs of bf16, and of bytes.
#define THRIFTY_PAIRS 1
THRIFTY_INLINE I load_bytes(const void* p) { return _mm512_loadu_si512(p); }
THRIFTY_INLINE void store_bytes(void* p, I x) { _mm512_storeu_si512(p, x); }

// Codes of 2 or 4 bits as bytes: vector k of a vector of codes holds rows kOrder[4k..4k+3] of its 16 lanes in the bytes
// of each lane.
template <int B> THRIFTY_INLINE I code_bytes(I codes, int k) {
  return _mm512_and_si512(_mm512_srli_epi32(codes, B * k), _mm512_set1_epi8((1 << B) - 1));
}
// Four vectors, -127..127, to the nearest int8, in the order of code_bytes.
template <int B> THRIFTY_INLINE I ordered_bytes(const V* x) {
  const I first = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1])),
          second = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
  const I lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i order = B == 2 ? _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15)
                               : _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, _mm512_packs_epi16(first, second)),
                             _mm512_broadcast_i32x4(order));
}
// Four vectors, -16256..16256, to the nearest integer as 128 high + low, both int8, in the order in which the lanes of
// a vector of 8-bit codes hold rows (see `unpack`).
THRIFTY_INLINE void split_bytes(const V* x, I& high, I& low) {
  const I first = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1])),
          second = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
  const I half = _mm512_set1_epi16(64), lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const I upper_first = _mm512_srai_epi16(_mm512_add_epi16(first, half), 7),
          upper_second = _mm512_srai_epi16(_mm512_add_epi16(second, half), 7);
  const I lower_first = _mm512_sub_epi16(first, _mm512_slli_epi16(upper_first, 7)),
          lower_second = _mm512_sub_epi16(second, _mm512_slli_epi16(upper_second, 7));
  const I order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  high = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, _mm512_packs_epi16(upper_first, upper_second)), order);
  low = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, _mm512_packs_epi16(lower_first, lower_second)), order);
}
// The larger of |a| and |b|.
THRIFTY_INLINE V largest_absolute(V a, V b) { return _mm512_range_ps(a, b, 0xb); }
THRIFTY_INLINE I times_128(I x) { return _mm512_slli_epi32(x, 7); }
THRIFTY_INLINE I no_dots() { return _mm512_setzero_si512(); }
THRIFTY_INLINE V dots_as_floats(I x) { return _mm512_cvtepi32_ps(x); }
THRIFTY_INLINE V sums_of_bytes(I x) {
  return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), x));
}
// acc += dot products of four bytes, codes times x.
THRIFTY_INLINE I dot_bytes(I acc, I codes, const uint32_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*x));
  return acc;
}
// acc += w * x for pairs of bf16, x in every lane of a register.
THRIFTY_INLINE V dot_pairs(V acc, I w, I x) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x); }
THRIFTY_INLINE I broadcast_pair(const uint32_t* p) {
  I x;
  asm("vpbroadcastd %1, %0" : "=v"(x) : "m"(*p));  // the compiler would make it every product's operand again
  return x;
}
// 64 bf16 of two rows -> pairs (a[i], b[i]) in four vectors.
THRIFTY_INLINE void interleave(const uint16_t* a, const uint16_t* b, I* w) {
  alignas(64) static constexpr uint16_t kOrder[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const I low = _mm512_load_si512(kOrder[0]), high = _mm512_load_si512(kOrder[1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const I x = load_bytes(a + 32 * i), y = b ? load_bytes(b + 32 * i) : _mm512_setzero_si512();
    w[2 * i] = _mm512_permutex2var_epi16(x, low, y), w[2 * i + 1] = _mm512_permutex2var_epi16(x, high, y);
  }
}

// The same within each 128 bits, which is cheaper: w[0] and w[1] hold the pairs of the first half of the rows, in
// quarters of eight: their first fours, and their second fours.
THRIFTY_INLINE void interleave_quarters(const uint16_t* a, const uint16_t* b, I* w) {
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const I x = load_bytes(a + 32 * i), y = b ? load_bytes(b + 32 * i) : _mm512_setzero_si512();
    w[2 * i] = _mm512_unpacklo_epi16(x, y), w[2 * i + 1] = _mm512_unpackhi_epi16(x, y);
  }
}
// Two vectors of sums in the order of such pairs, from 32 numbers in their own order, and back.
THRIFTY_INLINE void into_quarters(V& a, V& b) {
  const V first = _mm512_shuffle_f32x4(a, b, 0x88), second = _mm512_shuffle_f32x4(a, b, 0xdd);
  a = first, b = second;
}
THRIFTY_INLINE void out_of_quarters(V& a, V& b) {
  const V low = _mm512_shuffle_f32x4(a, b, 0x44), high = _mm512_shuffle_f32x4(a, b, 0xee);
  a = _mm512_shuffle_f32x4(low, low, 0xd8), b = _mm512_shuffle_f32x4(high, high, 0xd8);
}

// Asks for a line of memory, here: compilers gather what they may move, and so many requests at once wait.
THRIFTY_INLINE void fetch_line(const uint8_t* p) { asm volatile("prefetcht0 %0" ::"m"(*p)); }

THRIFTY_INLINE uint64_t read_lines(const uint8_t* p, size_t lines) {
  I a = _mm512_setzero_si512(), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 4 <= lines; i += 4) {
    const uint8_t* s = p + 64 * i;
    a = _mm512_add_epi64(a, _mm512_loadu_si512(s));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(s + 64));
    c = _mm512_add_epi64(c, _mm512_loadu_si512(s + 128));
    d = _mm512_add_epi64(d, _mm512_loadu_si512(s + 192));
  }
  for (; i < lines; i++) a = _mm512_add_epi64(a, _mm512_loadu_si512(p + 64 * i));
  uint64_t s[8], sum = 0;
  _mm512_storeu_si512(s, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
  for (uint64_t x : s) sum += x;
  return sum;
}

}  // namespace thrifty::THRIFTY_ISA
