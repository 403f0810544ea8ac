// Words that two weights share, as the bf16 numbers of one of them (linear/layouts/paired.hpp). Included once per
// instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

// 32 words to the bf16 numbers of member 1 or 2.
template <int MEMBER> THRIFTY_INLINE void member_values(const uint16_t* words, uint16_t* values) {
  constexpr int kLeft = MEMBER - 1;          // its sign is that far below the first's
  constexpr int kMask = 1 << (14 - MEMBER);  // it has the value
  constexpr int kBody = 0x0fff, kExponent = 112 << 7;
#if defined(__AVX512F__) && defined(__AVX512BW__)
  const __m512i w = _mm512_loadu_si512(words);
  const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(w, kLeft), _mm512_set1_epi16((short)0x8000));
  const __m512i body =
      _mm512_add_epi16(_mm512_and_si512(w, _mm512_set1_epi16(kBody)), _mm512_set1_epi16((short)kExponent));
  const __mmask32 has = _mm512_test_epi16_mask(w, _mm512_set1_epi16((short)kMask));
  _mm512_storeu_si512(values, _mm512_maskz_mov_epi16(has, _mm512_or_si512(sign, body)));
#elif defined(__AVX2__)
  for (int i = 0; i < 2 * kLanes; i += 16) {
    const __m256i w = _mm256_loadu_si256((const __m256i*)(words + i)), mask = _mm256_set1_epi16((short)kMask);
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi16(w, kLeft), _mm256_set1_epi16((short)0x8000));
    const __m256i body =
        _mm256_add_epi16(_mm256_and_si256(w, _mm256_set1_epi16(kBody)), _mm256_set1_epi16((short)kExponent));
    const __m256i has = _mm256_cmpeq_epi16(_mm256_and_si256(w, mask), mask);
    _mm256_storeu_si256((__m256i*)(values + i), _mm256_and_si256(has, _mm256_or_si256(sign, body)));
  }
#else
  for (int i = 0; i < 2 * kLanes; i++) {
    const int w = words[i];
    values[i] = (uint16_t)(w & kMask ? (w << kLeft & 0x8000) | ((w & kBody) + kExponent) : 0);
  }
#endif
}

}  // namespace thrifty::THRIFTY_ISA
