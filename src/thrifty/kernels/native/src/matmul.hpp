// y = W x over packed weights, one family of kernels for every number of rows. Included once per instruction set.
//
// The order of floating-point operations of an output element is fixed: blocks of 32 columns in order, for each
// acc = fma(dot, scale * x_scale, acc), then acc = fma(minimum, x_scale * sum(q), acc). It does not depend on how many
// rows run together, so decode, prefill and any batch agree to the bit.
#pragma once

namespace thrifty::THRIFTY_ISA {

// The minimums of 16 rows' groups: as stored, or from the zero points.
template <int BITS> THRIFTY_INLINE V group_minimum(const Linear& w, size_t at, V scale) {
  if (!w.zeros) return load_half(w.minimums + at);
  float below[kLanes];
  for (int i = 0; i < kLanes; i++) below[i] = (float)((BITS == 8 ? 128 : 0) - w.zeros[at + (size_t)i]);
  return mul(scale, load(below));
}

template <int BITS, bool MINIMUM, int M>
THRIFTY_INLINE void group_tile(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  constexpr int kBytes = 64 * BITS;
  const uint8_t* codes = w.codes + (size_t)tile * blocks * kBytes;
  const uint16_t* scales = w.scales + (size_t)tile * groups * kLanes;
  const size_t first = (size_t)tile * groups * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++, scales += kLanes) {
    const V scale = load_half(scales), minimum = MINIMUM ? group_minimum<BITS>(w, first + (size_t)g * kLanes, scale) : zero();
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += kBytes, x += kPanel) {
      V d[M];
      if constexpr (M == 1) {
        for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(codes + kFetchBytes + line);
      }
      block_dot<BITS, !MINIMUM, M>(codes, x, d);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) {
        acc[i] = fma(d[i], mul(scale, set1(x[i].scale)), acc[i]);
        if constexpr (MINIMUM) acc[i] = fma(minimum, set1(x[i].scaled_sum), acc[i]);
      }
    }
  }
}

// Two neighbouring tiles at once. Same order of operations for each element.
template <int BITS, bool MINIMUM, int M>
THRIFTY_INLINE void group_tiles(const Linear& w, int tile, const ActivationBlock* x, V* acc0, V* acc1) {
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  constexpr int kBytes = 64 * BITS;
  const size_t code_step = (size_t)blocks * kBytes, group_step = (size_t)groups * kLanes;
  const uint8_t* codes = w.codes + (size_t)tile * code_step;
  const uint16_t* scales = w.scales + (size_t)tile * group_step;
  const size_t first = (size_t)tile * group_step;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc0[i] = acc1[i] = zero();
  for (int g = 0; g < groups; g++, scales += kLanes) {
    const V scale0 = load_half(scales), scale1 = load_half(scales + group_step);
    const V minimum0 = MINIMUM ? group_minimum<BITS>(w, first + (size_t)g * kLanes, scale0) : zero();
    const V minimum1 = MINIMUM ? group_minimum<BITS>(w, first + group_step + (size_t)g * kLanes, scale1) : zero();
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += kBytes, x += kPanel) {
      V d0[M], d1[M];
      block_dot_pair<BITS, !MINIMUM, M>(codes, codes + code_step, x, d0, d1);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) {
        const V s = set1(x[i].scale);
        acc0[i] = fma(d0[i], mul(scale0, s), acc0[i]), acc1[i] = fma(d1[i], mul(scale1, s), acc1[i]);
        if constexpr (MINIMUM) {
          const V sum = set1(x[i].scaled_sum);
          acc0[i] = fma(minimum0, sum, acc0[i]), acc1[i] = fma(minimum1, sum, acc1[i]);
        }
      }
    }
  }
}

template <int M> THRIFTY_INLINE void pair_tile(const Linear& w, int tile, const uint32_t* x, V* acc) {
  const int pairs = (w.in + 1) / 2;
  const uint16_t* codes = (const uint16_t*)w.codes + (size_t)tile * pairs * 2 * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int p = 0; p < pairs; p++, codes += 2 * kLanes, x += kPanel) {
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) acc[i] = dot_pair(acc[i], codes, x[i]);
  }
}

template <int M> THRIFTY_INLINE void write_tile(const Linear& w, int tile, V* acc, float* y, size_t stride, bool add_to_y) {
  const int lanes = w.out - tile * kLanes < kLanes ? w.out - tile * kLanes : kLanes;
  const V bias = w.bias ? load_some(w.bias + tile * kLanes, lanes) : zero();
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) {
    V v = w.bias ? add(acc[i], bias) : acc[i];
    if (add_to_y) v = add(load_some(y + i * stride, lanes), v);
    store_some(y + i * stride, v, lanes);
  }
}

// KIND 4 or 8 with or without minimums, or 16. `x` points to the first of M rows inside a panel.
template <int KIND, bool MINIMUM, int M>
static void rows_tile(const Linear& w, int tile, const void* x, float* y, size_t stride, bool add_to_y) {
  V acc[M];
  if constexpr (KIND == 16) pair_tile<M>(w, tile, (const uint32_t*)x, acc);
  else group_tile<KIND, MINIMUM, M>(w, tile, (const ActivationBlock*)x, acc);
  write_tile<M>(w, tile, acc, y, stride, add_to_y);
}

template <int KIND, bool MINIMUM>
static void panel_tile(const Linear& w, int tile, const uint8_t* x, size_t item, int rows, float* y, size_t stride, bool add_to_y) {
  if (rows == kPanel) return rows_tile<KIND, MINIMUM, 8>(w, tile, x, y, stride, add_to_y);
  int i = 0;
  if (rows & 4) rows_tile<KIND, MINIMUM, 4>(w, tile, x, y, stride, add_to_y), i = 4;
  if (rows & 2) rows_tile<KIND, MINIMUM, 2>(w, tile, x + i * item, y + i * stride, stride, add_to_y), i += 2;
  if (rows & 1) rows_tile<KIND, MINIMUM, 1>(w, tile, x + i * item, y + i * stride, stride, add_to_y);
}

constexpr int kPairRows = 4;  // two tiles of accumulators for so many rows fit the registers

// kPairRows full rows of two neighbouring tiles.
template <int KIND, bool MINIMUM>
static void two_tiles(const Linear& w, int tile, const void* x, float* y, size_t stride, bool add_to_y) {
  V acc0[kPairRows], acc1[kPairRows];
  group_tiles<KIND, MINIMUM, kPairRows>(w, tile, (const ActivationBlock*)x, acc0, acc1);
  write_tile<kPairRows>(w, tile, acc0, y, stride, add_to_y);
  write_tile<kPairRows>(w, tile + 1, acc1, y + kLanes, stride, add_to_y);
}

// One tile over all rows.
template <int KIND, bool MINIMUM>
static void tile_rows(const Linear& w, int tile, const uint8_t* x, size_t panel_bytes, int rows, float* y, size_t stride, bool add_to_y) {
  const size_t item = KIND == 16 ? sizeof(uint32_t) : sizeof(ActivationBlock);
  for (; rows > 0; rows -= kPanel, x += panel_bytes, y += kPanel * stride)
    panel_tile<KIND, MINIMUM>(w, tile, x, item, rows < kPanel ? rows : kPanel, y, stride, add_to_y);
}

template <int KIND, bool MINIMUM>
static void run_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y, size_t stride, bool add_to_y) {
  const size_t item = KIND == 16 ? sizeof(uint32_t) : sizeof(ActivationBlock);
  const size_t panel_bytes = item * kPanel * (KIND == 16 ? (size_t)(w.in + 1) / 2 : (size_t)w.blocks());
  const uint8_t* x = (const uint8_t*)activations + (size_t)(row0 / kPanel) * panel_bytes;
  const int rows = row1 - row0, full = KIND != 16 && kPairsOfTiles ? rows / kPanel : 0;  // panels that go two tiles at a time
  int tile = tile0;
  for (; full > 0 && tile + 2 <= tile1; tile += 2, y += 2 * kLanes) {
    if constexpr (KIND != 16 && kPairsOfTiles) {
      for (int i = 0; i < 2 * full; i++)
        two_tiles<KIND, MINIMUM>(w, tile, x + (size_t)(i / 2) * panel_bytes + (size_t)(i % 2) * kPairRows * item, y + (size_t)i * kPairRows * stride, stride, add_to_y);
    }
    const size_t done = (size_t)full * kPanel;
    for (int t = 0; t < 2; t++)
      tile_rows<KIND, MINIMUM>(w, tile + t, x + (size_t)full * panel_bytes, panel_bytes, rows - (int)done, y + done * stride + (size_t)t * kLanes, stride, add_to_y);
  }
  for (; tile < tile1; tile++, y += kLanes) tile_rows<KIND, MINIMUM>(w, tile, x, panel_bytes, rows, y, stride, add_to_y);
}

// Products of a row of activations with C rows of weights: a fixed order, of sixteen interleaved sums.
template <int C> THRIFTY_INLINE void plain_columns(const float* weights, const float* x, int in, float* sums) {
  V acc[C];
  for (int c = 0; c < C; c++) acc[c] = zero(), sums[c] = 0.0f;
  int i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    const V v = load(x + i);
    for (int c = 0; c < C; c++) acc[c] = add(acc[c], mul(load(weights + (size_t)c * in + i), v));
  }
  for (int c = 0; c < C; c++) {
    float lanes[kLanes];
    store(lanes, acc[c]);
    for (int j = i; j < in; j++) sums[c] += weights[(size_t)c * in + j] * x[j];
    for (float lane : lanes) sums[c] += lane;
  }
}

// Weights and activations as plain rows of fp32, products and sums rounded one by one: the same bits on every instruction set.
static void plain_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y, size_t stride, bool add_to_y) {
  constexpr int C = 4;
  const float *x = (const float*)activations, *weights = (const float*)w.codes;
  const int first = tile0 * kLanes, end = tile1 * kLanes < w.out ? tile1 * kLanes : w.out;
  for (int c = first; c < end; c += C)
    for (int row = row0; row < row1; row++) {
      float sums[C], *to = y + (size_t)(row - row0) * stride + (c - first);
      const float* from = x + (size_t)row * w.in;
      const int count = end - c < C ? end - c : C;
      if (count == C) plain_columns<C>(weights + (size_t)c * w.in, from, w.in, sums);
      else
        for (int j = 0; j < count; j++) plain_columns<1>(weights + (size_t)(c + j) * w.in, from, w.in, sums + j);
      for (int j = 0; j < count; j++) {
        const float value = sums[j] + (w.bias ? w.bias[c + j] : 0.0f);
        to[j] = add_to_y ? to[j] + value : value;
      }
    }
}

}  // namespace thrifty::THRIFTY_ISA

#include "matmul_table.hpp"

namespace thrifty::THRIFTY_ISA {

static void tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y, size_t stride, bool add_to_y) {
  auto run = w.table ? (w.table_bits == 4 ? table_tiles<4> : table_tiles<8>)
             : w.kind == 32 ? plain_tiles
             : w.kind == 16 ? run_tiles<16, false>
             : w.kind == 4 ? (w.has_minimum() ? run_tiles<4, true> : run_tiles<4, false>)
                           : (w.has_minimum() ? run_tiles<8, true> : run_tiles<8, false>);
  run(w, tile0, tile1, activations, row0, row1, y, stride, add_to_y);
}

}  // namespace thrifty::THRIFTY_ISA
