// Products of plain fp32 rows with weights that are looked up as vectors of neighbouring rows: w = (main[code] +
// rest[code]) * scale + offset, with a scale and an offset a column. Columns are scaled before the product, and offsets
// are one sum a row of activations. The order is fixed (kernels/reference/lookups.py) and the same for any number of
// rows.
#pragma once

namespace thrifty::THRIFTY_ISA {

// `count` codes of a block as they are stored (lookups.hpp).
THRIFTY_INLINE void read_codes(const uint8_t* p, int bits, int count, uint16_t* to) {
  const int half = count / 2;
  if (bits == 4) {
    for (int i = 0; i < half; i++) to[i] = p[i] & 15, to[half + i] = p[i] >> 4;
    return;
  }
  for (int i = 0; i < count; i++) to[i] = p[i];
  p += count;
  if (bits == 12)
    for (int i = 0; i < half; i++)
      to[i] = (uint16_t)(to[i] | (p[i] & 15) << 8), to[half + i] = (uint16_t)(to[half + i] | (p[i] >> 4) << 8);
  else if (bits == 16)
    for (int i = 0; i < count; i++) to[i] = (uint16_t)(to[i] | p[i] << 8);
}

// The vectors of one column of sixteen rows.
template <int LENGTH> THRIFTY_INLINE V vector_values(const uint16_t* table, const uint16_t* codes) {
#if defined(__AVX2__)
  const auto eight = [&](const uint16_t* own) __attribute__((always_inline)) {
    if constexpr (LENGTH == 8) return _mm_loadu_si128((const __m128i*)(table + 8 * (size_t)own[0]));
    else
      return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)(table + 4 * (size_t)own[0])),
                                _mm_loadl_epi64((const __m128i*)(table + 4 * (size_t)own[1])));
  };
  const __m128i low = eight(codes), high = eight(codes + 8 / LENGTH);
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
#else
  return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
#endif
#else
  uint16_t values[kLanes];
  for (int u = 0; u < kLanes / LENGTH; u++)
    __builtin_memcpy(values + u * LENGTH, table + (size_t)LENGTH * codes[u], LENGTH * sizeof(uint16_t));
  return load_half(values);
#endif
}

// Columns first..first+columns-1 of a row times their scales.
THRIFTY_INLINE void scale_columns(const float* x, const uint16_t* scales, int columns, float* to) {
  int i = 0;
  for (; i + kLanes <= columns; i += kLanes) store(to + i, mul(load(x + i), load_half(scales + i)));
  for (; i < columns; i++) to[i] = x[i] * half_to_float(scales[i]);
}

// Adds main[code] * x over the columns of a block, in order: even ones to sums[2 i], odd ones to sums[2 i + 1].
template <int LENGTH, int M>
THRIFTY_INLINE void vector_block(const Vectors& v, const uint8_t* codes, const float* const* x, int first, int columns,
                                 V* sums) {
  constexpr int kCount = vector_codes(LENGTH), kPerColumn = kLanes / LENGTH;
  uint16_t main[kCount], rest[kCount];
  float scaled[M][kBlockColumns];
  read_codes(codes, v.bits, kCount, main);
  if (v.rest) read_codes(codes + kCount * v.bits / 8, v.rest_bits, kCount, rest);
  for (int i = 0; i < M; i++) scale_columns(x[i] + first, v.scales + first, columns, scaled[i]);
  const auto add_column = [&](int c, V* to) __attribute__((always_inline)) {
    const size_t book = v.books ? v.books[first + c] : 0;
    V values = vector_values<LENGTH>(v.main + (book * LENGTH << v.bits), main + c * kPerColumn);
    if (v.rest)
      values = add(values, vector_values<LENGTH>(v.rest + (book * LENGTH << v.rest_bits), rest + c * kPerColumn));
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) to[2 * i] = fma(values, set1(scaled[i][c]), to[2 * i]);
  };
  int c = 0;
  for (; c + 2 <= columns; c += 2) add_column(c, sums), add_column(c + 1, sums + 1);
  if (c < columns) add_column(c, sums);
}

template <int LENGTH, int M>
static void vector_tile(const Linear& w, int tile, const float* const* x, const float* offsets, float* y, size_t stride,
                        bool add_to_y) {
  const int blocks = w.blocks(), bytes = vector_bytes(w.vectors, LENGTH);
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)blocks * (size_t)bytes;
  V sums[2 * M], acc[M];
#pragma GCC unroll 16
  for (int i = 0; i < 2 * M; i++) sums[i] = zero();
  for (int b = 0; b < blocks; b++, codes += bytes) {
    const int first = b * kBlockColumns, columns = w.in - first < kBlockColumns ? w.in - first : kBlockColumns;
    if constexpr (M == 1) {
      for (int line = 0; line < bytes; line += 64) __builtin_prefetch(codes + kFetchBytes + line);
    }
    vector_block<LENGTH, M>(w.vectors, codes, x, first, columns, sums);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++) acc[i] = add(add(sums[2 * i], sums[2 * i + 1]), set1(offsets[i]));
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

template <int LENGTH>
static void vector_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                         size_t stride, bool add_to_y) {
  const float *rows = (const float*)activations, *x[kPanel];
  float offsets[kPanel];
  for (int row = row0, count; row < row1; row += count) {
    const int left = row1 - row;
    count = left >= kPanel ? kPanel : left >= 2 ? 2 : 1;
    for (int i = 0; i < count; i++) {
      x[i] = rows + (size_t)(row + i) * (size_t)w.in;
      plain_columns<1>(w.vectors.offsets, x[i], w.in, offsets + i);
    }
    float* to = y + (size_t)(row - row0) * stride;
    for (int tile = tile0; tile < tile1; tile++, to += kLanes) {
      if (count == kPanel) vector_tile<LENGTH, kPanel>(w, tile, x, offsets, to, stride, add_to_y);
      else if (count == 2) vector_tile<LENGTH, 2>(w, tile, x, offsets, to, stride, add_to_y);
      else vector_tile<LENGTH, 1>(w, tile, x, offsets, to, stride, add_to_y);
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
