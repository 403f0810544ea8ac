// Products of weights whose codes are places in a table of each row's own. A block becomes codes of 8 bits once for up
// to kPassRows rows of activations; from there on the order of operations is that of one level (matmul_codes.hpp), with
// one scale a row.
#pragma once

namespace thrifty::THRIFTY_ISA {

constexpr Codes kRowValues = {8, 0, false, 128};

// The tables of a tile's rows, sixteen bytes each, as shuffles of bytes read them: row 4 l + k at 64 k + 16 l, values
// plus 128.
template <int BITS> static void spread_tables(const int8_t* tables, uint8_t* to) {
  constexpr int kValues = 1 << BITS;
  for (int row = 0; row < kLanes; row++)
    for (int i = 0; i < 16; i++)
      to[64 * (row % 4) + 16 * (row / 4) + i] = (uint8_t)(tables[row * kValues + i % kValues] + 128);
}

// A block's codes become values. Byte 16 l + i of vector 4 h + k has column 16 h + i of row 4 l + k; byte 4 r + j of
// vector v of the values has column 4 v + j of row r.
template <Codes C> THRIFTY_INLINE void look_up(const uint8_t* codes, const uint8_t* tables, uint8_t* to) {
#if defined(__AVX512F__)
  const CodeBlock<C, true> block(codes);
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    I w[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
      w[k] = _mm512_shuffle_epi8(_mm512_loadu_si512(tables + 64 * k), code_vector(block, 4 * h + k));
    const I a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpackhi_epi32(w[0], w[1]),
            c = _mm512_unpacklo_epi32(w[2], w[3]), d = _mm512_unpackhi_epi32(w[2], w[3]);
    store_bytes(to + 256 * h, _mm512_unpacklo_epi64(a, c)), store_bytes(to + 256 * h + 64, _mm512_unpackhi_epi64(a, c));
    store_bytes(to + 256 * h + 128, _mm512_unpacklo_epi64(b, d));
    store_bytes(to + 256 * h + 192, _mm512_unpackhi_epi64(b, d));
  }
#elif defined(__AVX2__)
  for (int half = 0; half < 2; half++, codes += 32, tables += 32, to += 32)
    for (int h = 0; h < 2; h++) {
      I w[4];
      for (int k = 0; k < 4; k++)
        w[k] = _mm256_shuffle_epi8(_mm256_loadu_si256((const I*)(tables + 64 * k)), code_vector<C>(codes, 4 * h + k));
      const I a = _mm256_unpacklo_epi32(w[0], w[1]), b = _mm256_unpackhi_epi32(w[0], w[1]),
              c = _mm256_unpacklo_epi32(w[2], w[3]), d = _mm256_unpackhi_epi32(w[2], w[3]);
      _mm256_storeu_si256((I*)(to + 256 * h), _mm256_unpacklo_epi64(a, c));
      _mm256_storeu_si256((I*)(to + 256 * h + 64), _mm256_unpackhi_epi64(a, c));
      _mm256_storeu_si256((I*)(to + 256 * h + 128), _mm256_unpacklo_epi64(b, d));
      _mm256_storeu_si256((I*)(to + 256 * h + 192), _mm256_unpackhi_epi64(b, d));
    }
#else
  uint8_t places[64];
  for (int v = 0; v < 8; v++) {
    const int h = v / 4, k = v % 4;
    code_vector<C>(codes, v, places);
    for (int i = 0; i < 64; i++) {
      const int row = i / 16 * 4 + k, column = 16 * h + i % 16;
      to[64 * (column / 4) + 4 * row + column % 4] = tables[64 * k + i / 16 * 16 + places[i]];
    }
  }
#endif
}

#if defined(__AVX512F__)
// One row: values stay in registers, sixteen columns of a row in a lane of 128 bits, and four sums a row are added up
// last. The same whole numbers, and then the same operations, as through values in memory.
template <Codes C> static V row_table_row(const Linear& w, int tile, const uint8_t* tables, const ActivationBlock* x) {
  const int blocks = w.blocks();
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)blocks * C.bytes();
  const V scale = load_half(w.scales + (size_t)tile * kLanes);
  I own[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) own[k] = kept(_mm512_loadu_si512(tables + 64 * k));
  V acc = zero();
  for (int b = 0; b < blocks; b++, codes += C.bytes(), x += kPanel) {
    fetch_codes(codes, C.bytes());
    const CodeBlock<C, true> block(codes);
    I a[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) a[k] = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const I q = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(x->q + 16 * h)));
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++)
        a[k] = _mm512_dpbusd_epi32(a[k], _mm512_shuffle_epi8(own[k], code_vector(block, 4 * h + k)), q);
    }
    const I first = _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1])),
            second = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    const I dots = _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
    const V d = _mm512_cvtepi32_ps(_mm512_add_epi32(dots, dots_start<kRowValues.offset, 0, 8>(*x)));
    acc = fma(d, mul(scale, set1(x->scale)), acc);
  }
  return acc;
}
#endif

// sums[0..M-1] += what `blocks` blocks of values give.
template <int M>
THRIFTY_INLINE void add_values(const uint8_t* values, int blocks, const V& scale, const ActivationBlock* x, V* sums) {
  const V none = zero();
  V acc[M];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++) acc[i] = sums[i];
  for (int b = 0; b < blocks; b++, values += kRowValues.bytes(), x += kPanel) {
    const CodeBlock<kRowValues, false> block(values);
    add_group_block<false, 1, M>(&block, &scale, &none, x, acc);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++) sums[i] = acc[i];
}

// One tile over `rows` rows, kPassRows at most; x: the first of them, at the start of a panel or inside it.
template <Codes C>
static void row_table_pass(const Linear& w, int tile, const uint8_t* tables, const ActivationBlock* x, int rows,
                           V* sums) {
  const int blocks = w.blocks();
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)blocks * C.bytes();
  const V scale = load_half(w.scales + (size_t)tile * kLanes);
  alignas(64) uint8_t values[kSuperblock * kRowValues.bytes()];
  for (int i = 0; i < rows; i++) sums[i] = zero();
  for (int first = 0; first < blocks; first += kSuperblock) {
    const int count = blocks - first < kSuperblock ? blocks - first : kSuperblock;
    for (int b = 0; b < count; b++, codes += C.bytes()) {
      for (int line = 0; line < C.bytes(); line += 64) __builtin_prefetch(codes + kFetchBytes + line);
      look_up<C>(codes, tables, values + b * kRowValues.bytes());
    }
    for (int row = 0; row < rows; row += kPanel) {
      const ActivationBlock* from = x + ((size_t)(row / kPanel) * (size_t)blocks + (size_t)first) * kPanel;
      const int left = rows - row;
      V* to = sums + row;
      if (left >= kPanel) {
        add_values<kPanel>(values, count, scale, from, to);
        continue;
      }
      int i = 0;
      if (left & 4) add_values<4>(values, count, scale, from, to), i = 4;
      if (left & 2) add_values<2>(values, count, scale, from + i, to + i), i += 2;
      if (left & 1) add_values<1>(values, count, scale, from + i, to + i);
    }
  }
}

template <Codes C>
static void row_table_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1,
                            float* y, size_t stride, bool add_to_y) {
  const ActivationBlock* x = (const ActivationBlock*)activations + (size_t)row0 * (size_t)w.blocks();
  alignas(64) uint8_t tables[4 * 64];
  V sums[kPassRows];
  for (int tile = tile0; tile < tile1; tile++, y += kLanes) {
    spread_tables<C.bits()>(w.row_tables + ((size_t)tile * kLanes << C.bits()), tables);
    for (int row = 0; row < row1 - row0; row += kPassRows) {
      const int count = row1 - row0 - row < kPassRows ? row1 - row0 - row : kPassRows;
      const ActivationBlock* from = x + (size_t)row * (size_t)w.blocks();
#if defined(__AVX512F__)
      if (count == 1) sums[0] = row_table_row<C>(w, tile, tables, from);
      else row_table_pass<C>(w, tile, tables, from, count, sums);
#else
      row_table_pass<C>(w, tile, tables, from, count, sums);
#endif
      for (int i = 0; i < count; i++)
        write_tile<1>(w, tile, sums + i, y + (size_t)(row + i) * stride, stride, add_to_y);
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
