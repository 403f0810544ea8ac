// Sixteen floats in two AVX2 registers (AVX2, FMA, F16C).
#pragma once
#include <immintrin.h>

#include <cstring>

#include "types.hpp"

#define THRIFTY_INLINE static inline __attribute__((always_inline))

namespace thrifty::THRIFTY_ISA {

struct V {
  __m256 a, b;
};
using I = __m256i;
constexpr const char* kName = "avx2";
constexpr bool kPairsOfTiles = false;
constexpr int kScoreRows = 6, kScoreVectors = 1;

THRIFTY_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
THRIFTY_INLINE V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
THRIFTY_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
THRIFTY_INLINE void store(float* p, V v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
THRIFTY_INLINE V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
THRIFTY_INLINE V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
THRIFTY_INLINE V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
THRIFTY_INLINE V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
THRIFTY_INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// x * y - z, rounded once
THRIFTY_INLINE V fms(V x, V y, V z) { return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)}; }
THRIFTY_INLINE V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
THRIFTY_INLINE V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
THRIFTY_INLINE V absolute(V x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
THRIFTY_INLINE V round_even(V x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
THRIFTY_INLINE float reduce_max(V x) {
  __m256 m = _mm256_max_ps(x.a, x.b);
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
THRIFTY_INLINE float reduce_add(V x) {
  __m256 m = _mm256_add_ps(x.a, x.b);
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
THRIFTY_INLINE uint16_t float_to_half(float x) { return (uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
THRIFTY_INLINE V load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
THRIFTY_INLINE __m256 bf16x8(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
THRIFTY_INLINE V load_bf16(const uint16_t* p) { return {bf16x8(p), bf16x8(p + 8)}; }
THRIFTY_INLINE float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
THRIFTY_INLINE __m256 inside(int lo, int hi, int first) {
  I lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane),
                                              _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(lo - 1))));
}
THRIFTY_INLINE V keep(V x, int lo, int hi, V y) {
  return {_mm256_blendv_ps(y.a, x.a, inside(lo, hi, 0)), _mm256_blendv_ps(y.b, x.b, inside(lo, hi, 8))};
}
THRIFTY_INLINE V zero_below(V value, V x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_and_ps(value.a, _mm256_cmp_ps(x.a, l, _CMP_GE_OQ)),
          _mm256_and_ps(value.b, _mm256_cmp_ps(x.b, l, _CMP_GE_OQ))};
}
THRIFTY_INLINE __m256 shift_exponent(__m256 a, __m256 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
// p * 2^n, where e^x = p * 2^n: 0 where that is too small to be normal.
constexpr float kExponentialFloor = -87.3f, kPowerFloor = -125.9f;
THRIFTY_INLINE V times_power_of_two(V p, V n, V x, float floor) {
  return zero_below({shift_exponent(p.a, n.a), shift_exponent(p.b, n.b)}, x, floor);
}
// Whole numbers, -127..127, to bytes; returns their sum and gives that of the first. Taken from registers: loading what
// was just stored in two halves waits.
THRIFTY_INLINE int store_int8x32(int8_t* p, int* first, V x, V y) {
  const I low = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)),
          high = _mm256_packs_epi32(_mm256_cvtps_epi32(y.a), _mm256_cvtps_epi32(y.b));
  _mm256_storeu_si256(
      (I*)p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  const I ones = _mm256_set1_epi16(1),
          sums = _mm256_hadd_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  *first = _mm_cvtsi128_si32(s);
  return *first + _mm_extract_epi32(s, 2);
}
THRIFTY_INLINE uint16_t bf16_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
THRIFTY_INLINE void store_bf16(uint16_t* p, V x, V y) {
  float f[32];
  store(f, x), store(f + 16, y);
  for (int i = 0; i < 32; i++) p[i] = bf16_of(f[i]);
}

// Row e of the 16 lanes of a vector of codes (formats/kv.py, pack_lanes).
template <int B> THRIFTY_INLINE V unpack(const uint8_t* p, int e) {
  const __m128i shift = _mm_cvtsi32_si128(16 * (e % 2) + B * (e / 2));
  const I mask = _mm256_set1_epi32((1 << B) - 1);
  const I x = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256((const I*)p), shift), mask);
  const I y = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256((const I*)(p + 32)), shift), mask);
  return {_mm256_cvtepi32_ps(x), _mm256_cvtepi32_ps(y)};
}

// Asks for a line of memory, here: compilers gather what they may move, and so many requests at once wait.
THRIFTY_INLINE void fetch_line(const uint8_t* p) { asm volatile("prefetcht0 %0" ::"m"(*p)); }

THRIFTY_INLINE uint64_t read_lines(const uint8_t* p, size_t lines) {
  I a = _mm256_setzero_si256(), b = a;
  for (size_t i = 0; i < lines; i++) {
    a = _mm256_add_epi64(a, _mm256_loadu_si256((const I*)(p + 64 * i)));
    b = _mm256_add_epi64(b, _mm256_loadu_si256((const I*)(p + 64 * i + 32)));
  }
  uint64_t s[4];
  _mm256_storeu_si256((I*)s, _mm256_add_epi64(a, b));
  return s[0] + s[1] + s[2] + s[3];
}

}  // namespace thrifty::THRIFTY_ISA
