// Products of plain fp32 rows with weights that are codes into a table: w = scale * table[code]. Included once per
// instruction set; products and sums are rounded one by one: the same bits on every one, for any number of rows.
#pragma once

namespace thrifty::THRIFTY_ISA {

// The table's values of one column of a block for 16 rows: byte `shift / 8` of each row's word, or the half of it at
// `shift`.
template <int BITS> THRIFTY_INLINE V table_values(const float* table, const uint8_t* words, int shift) {
  constexpr int kMask = (1 << BITS) - 1;
#if defined(__AVX512F__)
  const __m512i places =
      _mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(words), _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(kMask));
  if constexpr (BITS == 4) return _mm512_permutexvar_ps(places, _mm512_loadu_ps(table));
  else return _mm512_i32gather_ps(places, table, 4);
#elif defined(__AVX2__)
  const auto half = [&](const uint8_t* from) {
    const __m256i words8 = _mm256_srl_epi32(_mm256_loadu_si256((const __m256i*)from), _mm_cvtsi32_si128(shift));
    return _mm256_i32gather_ps(table, _mm256_and_si256(words8, _mm256_set1_epi32(kMask)), 4);
  };
  return {half(words), half(words + 32)};
#else
  float values[kLanes];
  for (int lane = 0; lane < kLanes; lane++) {
    uint32_t word;
    __builtin_memcpy(&word, words + 4 * lane, 4);
    values[lane] = table[word >> shift & kMask];
  }
  return load(values);
#endif
}

// Adds table[code] * x[i] over the columns of a block, in order: even ones to sums[2 i], odd ones to sums[2 i + 1].
// columns: 32, or fewer in the last block.
template <int BITS, int M>
THRIFTY_INLINE void table_block(const float* table, const uint8_t* codes, const float* const* x, int first, int columns,
                                V* sums) {
  for (int vector = 0; 4 * vector < columns; vector++) {
    const uint8_t* words = codes + 64 * (BITS == 8 ? vector : vector % 4);
    const int high = BITS == 8 ? 0 : vector / 4 * 4;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int column = 4 * vector + j;
      if (column >= columns) return;
      const V w = table_values<BITS>(table, words, 8 * j + high);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) sums[2 * i + j % 2] = add(sums[2 * i + j % 2], mul(w, set1(x[i][first + column])));
    }
  }
}

template <int BITS, int M>
static void table_tile(const Linear& w, int tile, const float* const* x, float* y, size_t stride, bool add_to_y) {
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)blocks * 64 * BITS;
  const float* scales = w.table_scales + (size_t)tile * (size_t)groups * kLanes;
  V acc[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++) {
    V sums[2 * M];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; i++) sums[i] = zero();
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += 64 * BITS) {
      const int first = b * kBlockColumns, columns = w.in - first < kBlockColumns ? w.in - first : kBlockColumns;
      if constexpr (M == 1) {
        for (int line = 0; line < 64 * BITS; line += 64) __builtin_prefetch(codes + kFetchBytes + line);
      }
      table_block<BITS, M>(w.table, codes, x, first, columns, sums);
    }
    const V scale = load(scales + (size_t)g * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) acc[i] = add(acc[i], mul(scale, add(sums[2 * i], sums[2 * i + 1])));
  }
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

template <int BITS>
static void table_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                        size_t stride, bool add_to_y) {
  const float* rows = (const float*)activations;
  for (int tile = tile0; tile < tile1; tile++, y += kLanes) {
    int row = row0;
    const float* x[kPanel];
    for (; row < row1;) {
      const int left = row1 - row, count = left >= kPanel ? kPanel : left >= 2 ? 2 : 1;
      for (int i = 0; i < count; i++) x[i] = rows + (size_t)(row + i) * (size_t)w.in;
      float* to = y + (size_t)(row - row0) * stride;
      if (count == kPanel) table_tile<BITS, kPanel>(w, tile, x, to, stride, add_to_y);
      else if (count == 2) table_tile<BITS, 2>(w, tile, x, to, stride, add_to_y);
      else table_tile<BITS, 1>(w, tile, x, to, stride, add_to_y);
      row += count;
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
