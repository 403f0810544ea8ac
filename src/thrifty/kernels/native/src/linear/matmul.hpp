// y = W x over stored weights, one family of kernels for every number of rows. Included once per instruction set.
#pragma once
#include "linear/matmul_many.hpp"
#include "linear/matmul_plain.hpp"
#include "linear/paired_words.hpp"

namespace thrifty::THRIFTY_ISA {

// member: of words that two weights share (LayoutTraits::member), else 0.
template <int M, int MEMBER> THRIFTY_INLINE void pair_tile(const Linear& w, int tile, const uint32_t* x, V* acc) {
  const int pairs = (w.in + 1) / 2;
  const uint16_t* codes = (const uint16_t*)w.codes + (size_t)tile * pairs * 2 * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int p = 0; p < pairs; p++, codes += 2 * kLanes, x += kPanel) {
    if constexpr (MEMBER > 0) {
      alignas(64) uint16_t values[2 * kLanes];
      member_values<MEMBER>(codes, values);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) acc[i] = dot_pair(acc[i], values, x[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) acc[i] = dot_pair(acc[i], codes, x[i]);
    }
  }
}

// Pairs of which two of four columns are kept: in the order of dense ones, so with their bits.
template <Layout L, int M> THRIFTY_INLINE void sparse_pair_tile(const Linear& w, int tile, const uint32_t* x, V* acc) {
  constexpr int kBytes = traits(L).codes.bytes(), kGroups = kBlockColumns / 4;
  const uint8_t* first = w.codes + (size_t)tile * (size_t)w.blocks() * kBytes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int g = 0; g < w.in / 4; g++, x += 2 * kPanel) {
    alignas(64) uint16_t pairs[4 * kLanes];
    const uint8_t* block = first + (size_t)(g / kGroups) * kBytes;
    if constexpr (M == 1) fetch_line(block + 64 * (1 + g % kGroups) + kFetchBytes);
    expand_pairs(block, block + 64 * (1 + g % kGroups), g % kGroups, pairs);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) acc[i] = dot_pair(dot_pair(acc[i], pairs, x[i]), pairs + 2 * kLanes, x[kPanel + i]);
  }
}

template <int M>
THRIFTY_INLINE void write_tile(const Linear& w, int tile, V* acc, float* y, size_t stride, bool add_to_y) {
  const int lanes = w.out - tile * kLanes < kLanes ? w.out - tile * kLanes : kLanes;
  const V bias = w.bias ? load_some(w.bias + tile * kLanes, lanes) : zero();
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    V v = w.bias ? add(acc[i], bias) : acc[i];
    if (add_to_y) v = add(load_some(y + i * stride, lanes), v);
    store_some(y + i * stride, v, lanes);
  }
}

}  // namespace thrifty::THRIFTY_ISA

#include "linear/matmul_outliers.hpp"
#include "linear/matmul_overlay.hpp"
#include "linear/matmul_row_tables.hpp"
#include "linear/matmul_planes.hpp"
#include "linear/matmul_table.hpp"
#include "linear/matmul_vectors.hpp"

namespace thrifty::THRIFTY_ISA {

// `x` points to the first of M rows inside a panel. Bytes of a row's items there: `item<L>()`, `items<L>` of them.
template <Layout L> THRIFTY_SHARED constexpr size_t item() {
  return reads(L) == Reads::pairs ? sizeof(uint32_t) : sizeof(ActivationBlock);
}
template <Layout L> THRIFTY_SHARED size_t panel_size(const Linear& w) {
  return item<L>() * kPanel *
         (size_t)(reads(L) == Reads::pairs    ? (w.in + 1) / 2
                  : reads(L) == Reads::tokens ? w.token_items()
                                              : w.blocks());
}

template <Layout L, bool MINIMUM, int M>
static void rows_tile(const Linear& w, int tile, const void* x, float* y, size_t stride, bool add_to_y) {
  V acc[M];
  if constexpr (reads(L) == Reads::pairs && traits(L).codes.sparse)
    sparse_pair_tile<L, M>(w, tile, (const uint32_t*)x, acc);
  else if constexpr (reads(L) == Reads::pairs) pair_tile<M, traits(L).member>(w, tile, (const uint32_t*)x, acc);
  else code_tile<L, MINIMUM, M>(w, tile, (const ActivationBlock*)x, acc);
  if constexpr (traits(L).outliers)
    if (w.threshold > 0) add_outliers<L, M>(w, tile, (const ActivationBlock*)x, acc);
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

template <Layout L, bool MINIMUM>
static void panel_tile(const Linear& w, int tile, const uint8_t* x, int rows, float* y, size_t stride, bool add_to_y) {
  if (rows == kPanel) return rows_tile<L, MINIMUM, 8>(w, tile, x, y, stride, add_to_y);
  int i = 0;
  if (rows & 4) rows_tile<L, MINIMUM, 4>(w, tile, x, y, stride, add_to_y), i = 4;
  if (rows & 2) rows_tile<L, MINIMUM, 2>(w, tile, x + i * item<L>(), y + i * stride, stride, add_to_y), i += 2;
  if (rows & 1) rows_tile<L, MINIMUM, 1>(w, tile, x + i * item<L>(), y + i * stride, stride, add_to_y);
}

// One tile over all rows.
template <Layout L, bool MINIMUM>
static void all_rows(const Linear& w, int tile, const uint8_t* x, int rows, float* y, size_t stride, bool add_to_y) {
  for (; rows > 0; rows -= kPanel, x += panel_size<L>(w), y += kPanel * stride)
    panel_tile<L, MINIMUM>(w, tile, x, rows < kPanel ? rows : kPanel, y, stride, add_to_y);
}

// Four rows of two tiles of one level whose codes are unpacked in an instruction or two: cheaper each time than once
// for all rows.
constexpr int kDirectRows = 4;
// FIRST: of the rows that go through these tiles, so that their codes come from memory. Asking for those to come lets
// memory and arithmetic work at the same time; the rows behind find them in a cache.
template <Layout L, bool MINIMUM, bool FIRST>
static void direct_rows(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  constexpr Codes C = codes_of(L, MINIMUM);
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  const size_t step = tile_step<L, MINIMUM>(w), first = (size_t)tile * (size_t)groups * kLanes,
               next = (size_t)groups * kLanes;
  const uint8_t* codes = w.codes + (size_t)tile * step;
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kDirectRows; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++) {
    const size_t at = first + (size_t)g * kLanes;
    const V scale[2] = {load_half(w.scales + at), load_half(w.scales + at + next)};
    const V minimum[2] = {MINIMUM ? group_minimum<L>(w, at, scale[0]) : zero(),
                          MINIMUM ? group_minimum<L>(w, at + next, scale[1]) : zero()};
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += C.bytes(), x += kPanel) {
      if constexpr (FIRST) fetch_codes(codes, C.bytes()), fetch_codes(codes + step, C.bytes());
      const CodeBlock<C, false> both[2] = {CodeBlock<C, false>(codes), CodeBlock<C, false>(codes + step)};
      add_group_block<MINIMUM, 2, kDirectRows>(both, scale, minimum, x, acc);
    }
  }
}

// Two tiles over many rows, in passes; returns how many rows that were: all but some that do not fill the registers.
template <Layout L, bool MINIMUM>
static int many_rows(const Linear& w, int tile, const uint8_t* x, int rows, float* y, size_t stride, bool add_to_y) {
  if constexpr (traits(L).direct) {
    const int done = rows / kDirectRows * kDirectRows;
    for (int row = 0; row < done; row += kDirectRows) {
      V acc[2 * kDirectRows];
      const uint8_t* from = x + (size_t)(row / kPanel) * panel_size<L>(w) + (size_t)(row % kPanel) * item<L>();
      if (row == 0) direct_rows<L, MINIMUM, true>(w, tile, (const ActivationBlock*)from, acc);
      else direct_rows<L, MINIMUM, false>(w, tile, (const ActivationBlock*)from, acc);
      for (int n = 0; n < 2; n++) {
        if constexpr (traits(L).outliers)
          if (w.threshold > 0)
            add_outliers<L, kDirectRows>(w, tile + n, (const ActivationBlock*)from, acc + n * kDirectRows);
        write_tile<kDirectRows>(w, tile + n, acc + n * kDirectRows, y + (size_t)row * stride + n * kLanes, stride,
                                add_to_y);
      }
    }
    return done;
  } else {
    V sums[kPassRows / kTogether][2 * kTogether];
    const int whole = rows / kTogether * kTogether;
    for (int row = 0; row < whole; row += kPassRows) {
      const int groups = (whole - row < kPassRows ? whole - row : kPassRows) / kTogether;
      pass<L, MINIMUM>(w, tile, (const ActivationBlock*)(x + (size_t)(row / kPanel) * panel_size<L>(w)), groups, sums);
      for (int g = 0; g < groups; g++)
        for (int n = 0; n < 2; n++)
          write_tile<kTogether>(w, tile + n, sums[g] + n * kTogether,
                                y + (size_t)(row + g * kTogether) * stride + n * kLanes, stride, add_to_y);
    }
    return whole;
  }
}

// Rows from which two tiles go together. Fewer are bound by the memory, which is read fastest as one stream.
constexpr int kPairRows = 4;

template <Layout L, bool MINIMUM>
static void run_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                      size_t stride, bool add_to_y) {
  const uint8_t* x = (const uint8_t*)activations + (size_t)(row0 / kPanel) * panel_size<L>(w);
  const int rows = row1 - row0;
  int tile = tile0;
  if constexpr (reads(L) != Reads::pairs && kPairsOfTiles)
    for (; rows >= kPairRows && tile + 2 <= tile1; tile += 2, y += 2 * kLanes) {
      const int done = many_rows<L, MINIMUM>(w, tile, x, rows, y, stride, add_to_y);
      const uint8_t* rest = x + (size_t)(done / kPanel) * panel_size<L>(w) + (size_t)(done % kPanel) * item<L>();
      for (int n = 0; n < 2; n++)
        all_rows<L, MINIMUM>(w, tile + n, rest, rows - done, y + (size_t)done * stride + n * kLanes, stride, add_to_y);
    }
  for (; tile < tile1; tile++, y += kLanes) all_rows<L, MINIMUM>(w, tile, x, rows, y, stride, add_to_y);
}

using RunTiles = void (*)(const Linear&, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                          size_t stride, bool add);

// The kernels of a layout's family; minimum: with minimums or zero points.
template <Layout L> static constexpr RunTiles kernel_of(bool minimum) {
  constexpr LayoutTraits T = traits(L);
  if constexpr (T.family == Family::plain && T.number == 4) return plain_tiles<float>;
  else if constexpr (T.family == Family::plain) return plain_tiles<uint16_t>;
  else if constexpr (T.family == Family::table) return table_tiles<T.codes.bits()>;
  else if constexpr (T.family == Family::row_tables) return row_table_tiles<T.codes>;
  else if constexpr (T.family == Family::vectors) return vector_tiles<T.length>;
  else if constexpr (T.family == Family::planes) return plane_tiles;
  else if constexpr (T.minimums == Minimums::may) return minimum ? run_tiles<L, true> : run_tiles<L, false>;
  else return run_tiles<L, false>;
}

#define THRIFTY_KERNELS(name) {kernel_of<Layout::name>(false), kernel_of<Layout::name>(true)},
static constexpr RunTiles kTiles[kLayouts][2] = {THRIFTY_LAYOUTS(THRIFTY_KERNELS)};
#undef THRIFTY_KERNELS

static void tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                  size_t stride, bool add_to_y) {
  kTiles[(int)w.layout][w.has_minimum()](w, tile0, tile1, activations, row0, row1, y, stride, add_to_y);
  if (w.overlay.starts) add_overlay(w, tile0, tile1, activations, row0, row1, y, stride);
}

}  // namespace thrifty::THRIFTY_ISA
