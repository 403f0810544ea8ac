// Products of plain fp32 rows with weights that are codes into a table: w = scale * table[code]. Included once per
// instruction set; products and sums are rounded one by one: the same bits on every one, for any number of rows.
#pragma once

namespace thrifty::THRIFTY_ISA {

// The table's values of one column of a block for 16 rows: byte `column % 4` of each row's word, or one half of it.
template <int BITS> THRIFTY_INLINE V table_values(const float* table, const uint32_t* words, int shift) {
  float values[kLanes];
  for (int lane = 0; lane < kLanes; lane++) values[lane] = table[words[lane] >> shift & ((1u << BITS) - 1)];
  return load(values);
}

// sums[i] += table[code] * x[i] over the columns of a block, in order. columns: 32, or fewer in the last block.
template <int BITS, int M>
THRIFTY_INLINE void table_block(const float* table, const uint8_t* codes, const float* const* x, int first, int columns, V* sums) {
  for (int column = 0; column < columns; column++) {
    const int vector = column / 4, low = BITS == 8 ? vector : vector % 4;
    const V w = table_values<BITS>(table, (const uint32_t*)(codes + 64 * low), 8 * (column % 4) + (low == vector ? 0 : 4));
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) sums[i] = add(sums[i], mul(w, set1(x[i][first + column])));
  }
}

template <int BITS, int M> static void table_tile(const Linear& w, int tile, const float* const* x, float* y, size_t stride, bool add_to_y) {
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  const uint8_t* codes = w.codes + (size_t)tile * (size_t)blocks * 64 * BITS;
  const float* scales = w.table_scales + (size_t)tile * (size_t)groups * kLanes;
  V acc[M];
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++) {
    V sums[M];
    for (int i = 0; i < M; i++) sums[i] = zero();
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += 64 * BITS) {
      const int first = b * kBlockColumns, columns = w.in - first < kBlockColumns ? w.in - first : kBlockColumns;
      if constexpr (M == 1) {
        for (int line = 0; line < 64 * BITS; line += 64) __builtin_prefetch(codes + kFetchBytes + line);
      }
      table_block<BITS, M>(w.table, codes, x, first, columns, sums);
    }
    const V scale = load(scales + (size_t)g * kLanes);
    for (int i = 0; i < M; i++) acc[i] = add(acc[i], mul(scale, sums[i]));
  }
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

template <int BITS>
static void table_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y, size_t stride, bool add_to_y) {
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
