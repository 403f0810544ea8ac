// Products of weights and activations that are bipolar integers in bit planes (arXiv 2409.17870, section 3): bit i of a
// number stands for 2^i or -2^i, so that
//   sum(w x) = sum over planes i, j of 2^(i + j) (K - 2 popcount(w_i xor x_j))
// over K columns. Sums of a group are exact int32; a group's result is added as acc = fma(sum, scale * xs, acc), groups
// in order. Included once per instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

// Registers: rows at a time, planes of the weights at a time, and planes of the activations of one row or of some rows.
// counts: sixteen words, one a row of the tile, += the bits in which 32 columns of a plane differ from those of the
// activations.
#if defined(__AVX512F__)
constexpr int kPlaneRows = 4, kWeightPlanes = 2, kPlanesOfOne = 4, kPlanesOfSome = 2;
THRIFTY_INLINE Words no_words() { return _mm512_setzero_si512(); }
THRIFTY_INLINE Words add_words(Words a, Words b) { return _mm512_add_epi32(a, b); }
THRIFTY_INLINE Words words_up(Words x, int bits) { return _mm512_sll_epi32(x, _mm_cvtsi32_si128(bits)); }
THRIFTY_INLINE Words all_less_twice(int all, Words x) {
  return _mm512_sub_epi32(_mm512_set1_epi32(all), _mm512_slli_epi32(x, 1));
}
THRIFTY_INLINE Words add_differing(Words counts, Words w, uint32_t x) {
  Words bits;  // in assembly: processors of this instruction set may lack it, and then don't come here
  asm("vpopcntd %1, %0" : "=v"(bits) : "v"(_mm512_xor_si512(w, _mm512_set1_epi32((int)x))));
  return _mm512_add_epi32(counts, bits);
}
THRIFTY_INLINE Words whole_words(V x) { return _mm512_cvtps_epi32(x); }
THRIFTY_INLINE uint32_t plane_bits(Words x, int bit) { return _mm512_test_epi32_mask(x, _mm512_set1_epi32(1 << bit)); }
#elif defined(__AVX2__)
constexpr int kPlaneRows = 2, kWeightPlanes = 1, kPlanesOfOne = 2, kPlanesOfSome = 2;
THRIFTY_INLINE Words no_words() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
THRIFTY_INLINE Words add_words(Words x, Words y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
THRIFTY_INLINE Words words_up(Words x, int bits) {
  const __m128i by = _mm_cvtsi32_si128(bits);
  return {_mm256_sll_epi32(x.a, by), _mm256_sll_epi32(x.b, by)};
}
THRIFTY_INLINE Words all_less_twice(int all, Words x) {
  const I from = _mm256_set1_epi32(all);
  return {_mm256_sub_epi32(from, _mm256_slli_epi32(x.a, 1)), _mm256_sub_epi32(from, _mm256_slli_epi32(x.b, 1))};
}
// Bits that are set in each of eight words: by a table of nibbles, then bytes added up.
THRIFTY_INLINE I popcount8(I x) {
  const I table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4)),
          low = _mm256_set1_epi8(15);
  const I bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                                  _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}
THRIFTY_INLINE Words add_differing(Words counts, Words w, uint32_t x) {
  const I all = _mm256_set1_epi32((int)x);
  return {_mm256_add_epi32(counts.a, popcount8(_mm256_xor_si256(w.a, all))),
          _mm256_add_epi32(counts.b, popcount8(_mm256_xor_si256(w.b, all)))};
}
THRIFTY_INLINE Words whole_words(V x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
THRIFTY_INLINE uint32_t plane_bits(Words x, int bit) {
  const __m128i up = _mm_cvtsi32_si128(31 - bit);
  return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_sll_epi32(x.a, up))) |
         (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_sll_epi32(x.b, up))) << 8;
}
#else
constexpr int kPlaneRows = 2, kWeightPlanes = 1, kPlanesOfOne = 2, kPlanesOfSome = 2;
THRIFTY_INLINE Words no_words() { return Words{}; }
THRIFTY_INLINE Words add_words(Words x, Words y) {
  for (int i = 0; i < kLanes; i++) x.w[i] += y.w[i];
  return x;
}
THRIFTY_INLINE Words words_up(Words x, int bits) {
  for (int i = 0; i < kLanes; i++) x.w[i] <<= bits;
  return x;
}
THRIFTY_INLINE Words all_less_twice(int all, Words x) {
  for (int i = 0; i < kLanes; i++) x.w[i] = (uint32_t)all - 2 * x.w[i];
  return x;
}
THRIFTY_INLINE Words add_differing(Words counts, Words w, uint32_t x) {
  for (int i = 0; i < kLanes; i++) counts.w[i] += (uint32_t)__builtin_popcount(w.w[i] ^ x);
  return counts;
}
THRIFTY_INLINE Words whole_words(V x) {
  float f[kLanes];
  store(f, x);
  Words r;
  for (int i = 0; i < kLanes; i++) r.w[i] = (uint32_t)(int32_t)f[i];
  return r;
}
THRIFTY_INLINE uint32_t plane_bits(Words x, int bit) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; i++) bits |= (x.w[i] >> bit & 1u) << i;
  return bits;
}
#endif

// A row of plain activations as planes: a word a block and bit, words of a block together, columns behind the last
// zero. A group is rounded to odd whole numbers of its scale, max|x| / (2^bits - 1): with code u, 2 u - (2^bits - 1).
static void to_planes(const Linear& w, const float* x, uint32_t* planes, float* scales) {
  const int bits = w.activation_bits;
  const float most_code = (float)((1 << bits) - 1);
  const V high = set1(most_code), half = set1(0.5f);
  for (int first = 0, g = 0; first < w.in; first += w.group, g++) {
    const int end = w.in - first < w.group ? w.in : first + w.group;
    V most = zero();
    for (int c = first; c < end; c += kLanes) most = max(most, absolute(load_some(x + c, end - c)));
    const float scale = reduce_max(most) / most_code;
    scales[g] = scale;
    for (int c = first; c < end; c += kBlockColumns) {
      uint32_t* to = planes + (size_t)(c / kBlockColumns) * (size_t)bits;
      for (int j = 0; j < bits; j++) to[j] = 0;
      if (scale == 0.0f) continue;
      for (int from = c; from < end && from < c + kBlockColumns; from += kLanes) {
        const V steps = div(load_some(x + from, end - from), set1(scale));
        const Words codes = whole_words(min(max(round_even(mul(add(steps, high), half)), zero()), high));
        const uint32_t there = end - from >= kLanes ? 0xffffu : (1u << (end - from)) - 1u;
        for (int j = 0; j < bits; j++) to[j] |= (plane_bits(codes, j) & there) << (from - c);
      }
    }
  }
}

// totals[i] += the bits in which planes of the weights, P of them from `codes` on, and planes of row i of M, J of them,
// differ in `blocks` blocks. The first pair counts 2^shift, each plane further on either side twice as much. first: the
// row's words of the first block.
template <int M, int P, int J>
THRIFTY_INLINE void count_planes(const uint8_t* codes, int step, int blocks, const uint32_t* const* x, size_t first,
                                 int bits, int shift, Words* totals) {
  Words counts[P * M * J];
#pragma GCC unroll 16
  for (int i = 0; i < P * M * J; i++) counts[i] = no_words();
  for (int b = 0; b < blocks; b++, codes += step, first += (size_t)bits) {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      const Words line = load_words(codes + 64 * p);
#pragma GCC unroll 4
      for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) {
          Words& count = counts[(p * M + i) * J + j];
          count = add_differing(count, line, x[i][first + (size_t)j]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) {
#pragma GCC unroll 4
      for (int j = 0; j < J; j++)
        totals[i] = add_words(totals[i], words_up(counts[(p * M + i) * J + j], shift + p + j));
    }
  }
}

// P planes of the weights of a group, the first of them number `plane`, with all planes of M rows.
template <int M, int P>
THRIFTY_INLINE void count_rows(const uint8_t* codes, int step, int blocks, const uint32_t* const* x, size_t first,
                               int bits, int plane, Words* totals) {
  constexpr int kTogether = M == 1 ? kPlanesOfOne : kPlanesOfSome;
  int j = 0;
  if constexpr (kTogether == 4)
    for (; j + 4 <= bits; j += 4)
      count_planes<M, P, 4>(codes, step, blocks, x, first + (size_t)j, bits, plane + j, totals);
  for (; j + 2 <= bits; j += 2)
    count_planes<M, P, 2>(codes, step, blocks, x, first + (size_t)j, bits, plane + j, totals);
  if (j < bits) count_planes<M, P, 1>(codes, step, blocks, x, first + (size_t)j, bits, plane + j, totals);
}

// One tile and M rows of activations, as to_planes makes them.
template <int M>
static void plane_tile(const Linear& w, int tile, const uint32_t* const* x, const float* const* xs, float* y,
                       size_t stride, bool add_to_y) {
  const int planes = traits(w.layout).codes.bits(), bits = w.activation_bits, step = 64 * planes;
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)w.blocks() * (size_t)step;
  const uint16_t* scales = w.scales + (size_t)tile * (size_t)((w.in + w.group - 1) / w.group) * kLanes;
  V acc[M];
#pragma GCC unroll 4
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int first = 0, g = 0; first < w.in; first += w.group, g++, scales += kLanes) {
    const int columns = w.in - first < w.group ? w.in - first : w.group;
    const int blocks = (columns + kBlockColumns - 1) / kBlockColumns;
    const size_t at = (size_t)(first / kBlockColumns) * (size_t)bits;
    Words totals[M];
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) totals[i] = no_words();
    int p = 0;
    if constexpr (kWeightPlanes == 2)
      for (; p + 2 <= planes; p += 2) count_rows<M, 2>(codes + 64 * p, step, blocks, x, at, bits, p, totals);
    for (; p < planes; p++) count_rows<M, 1>(codes + 64 * p, step, blocks, x, at, bits, p, totals);
    codes += (size_t)blocks * (size_t)step;
    const int all = columns * ((1 << planes) - 1) * ((1 << bits) - 1);
    const V scale = load_half(scales);
#pragma GCC unroll 4
    for (int i = 0; i < M; i++)
      acc[i] = fma(words_as_floats(all_less_twice(all, totals[i])), mul(scale, set1(xs[i][g])), acc[i]);
  }
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

// Rows are made planes for some tiles at a time, into the worker's stack.
static void plane_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                        size_t stride, bool add_to_y) {
#if defined(__AVX512F__)
  if (!has_vector_popcount())
    return kernels_avx2()->tiles(w, tile0, tile1, activations, row0, row1, y, stride, add_to_y);
#endif
  const size_t words = (size_t)w.blocks() * (size_t)w.activation_bits,
               groups = (size_t)((w.in + w.group - 1) / w.group);
  uint32_t* planes = (uint32_t*)__builtin_alloca(kPlaneRows * words * sizeof(uint32_t));
  float* scales = (float*)__builtin_alloca(kPlaneRows * groups * sizeof(float));
  const uint32_t* x[kPlaneRows];
  const float* xs[kPlaneRows];
  for (int i = 0; i < kPlaneRows; i++) x[i] = planes + (size_t)i * words, xs[i] = scales + (size_t)i * groups;
  for (int row = row0; row < row1; row += kPlaneRows, y += kPlaneRows * stride) {
    const int count = row1 - row < kPlaneRows ? row1 - row : kPlaneRows;
    for (int i = 0; i < count; i++)
      to_planes(w, (const float*)activations + (size_t)(row + i) * (size_t)w.in, planes + (size_t)i * words,
                scales + (size_t)i * groups);
    float* to = y;
    for (int tile = tile0; tile < tile1; tile++, to += kLanes) {
      if (count == kPlaneRows) plane_tile<kPlaneRows>(w, tile, x, xs, to, stride, add_to_y);
      else
        for (int i = 0; i < count; i++)
          plane_tile<1>(w, tile, x + i, xs + i, to + (size_t)i * stride, stride, add_to_y);
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
