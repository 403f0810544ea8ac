// Scores and values of bf16 pages as dot products of pairs: queries and weights rounded to bf16, sums in fp32. Included
// where the instruction set has them.
#pragma once
#include "attention/attention_page.hpp"

namespace thrifty::THRIFTY_ISA {

constexpr int kPairs = 32;  // pairs of 64 channels, or of the slots of a page

// Queries [row][dim] -> bf16 pairs [slice of 64 channels][row][kPairs].
THRIFTY_INLINE void round_queries(const float* q, int rows, int dim, uint32_t* pairs) {
  for (int c = 0; c < dim; c += 2 * kLanes)
    for (int r = 0; r < rows; r++)
      store_bf16((uint16_t*)(pairs + ((c / 64) * rows + r) * kPairs + c % 64 / 2), load(q + (size_t)r * dim + c),
                 load(q + (size_t)r * dim + c + kLanes));
}

// The last channels of two rows, less than 64, with zeros behind them.
THRIFTY_INLINE void interleave_rest(const uint16_t* a, const uint16_t* b, int count, I* w) {
  alignas(64) uint16_t rows[2][64] = {};
  __builtin_memcpy(rows[0], a, sizeof(uint16_t) * (size_t)count);
  if (b) __builtin_memcpy(rows[1], b, sizeof(uint16_t) * (size_t)count);
  interleave(rows[0], rows[1], w);
}

// A page as pairs of rows: keys [size / 2][kPage][2], values [kPage / 2][align64(size)][2]; the slot behind an odd last
// one is zero.
static void interleave_page(const uint16_t* keys, const uint16_t* values, int slots, int size, uint16_t* key_pairs,
                            uint16_t* value_pairs) {
  I w[4];
  for (int c = 0; c < size; c += 2, key_pairs += 2 * kPage) {
    interleave(keys + (size_t)c * kPage, keys + (size_t)(c + 1) * kPage, w);
    for (int j = 0; j < 4; j++) store_bytes(key_pairs + j * 2 * kLanes, w[j]);
  }
  for (int i = 0; i < slots; i += 2)
    for (int c = 0; c < size; c += 64, value_pairs += 128) {
      const uint16_t *row = values + (size_t)i * size + c, *next = i + 1 < slots ? row + size : nullptr;
      if (size - c >= 64) interleave(row, next, w);
      else interleave_rest(row, next, size - c, w);
      for (int j = 0; j < 4; j++) store_bytes(value_pairs + j * 2 * kLanes, w[j]);
    }
}

// acc[row][vector] += w * pairs[row]. A pair goes through a register: some processors load as many bytes to broadcast
// it as they load of the page.
template <int R> THRIFTY_INLINE void accumulate_pairs(const I* w, const uint32_t* pairs, V (*acc)[4]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const I x = broadcast_pair(pairs + r * kPairs);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[r][j] = dot_pairs(acc[r][j], w[j], x);
  }
}

// INTERLEAVED: `keys` is what interleave_page made; else the page itself, and `ahead` is fetched.
template <int R, bool INTERLEAVED>
THRIFTY_INLINE void score_pairs(const uint32_t* q, const uint16_t* keys, int size, float* scores,
                                const uint8_t* ahead) {
  V acc[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[r][j] = zero();
  for (int slice = 0; slice * 64 < size; slice++, q += R * kPairs)
    for (int c = 0, end = size - slice * 64 < 64 ? size % 64 / 2 : kPairs; c < end; c++, keys += 2 * kPage) {
      I w[4];
      if constexpr (INTERLEAVED) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) w[j] = load_bytes(keys + j * 2 * kLanes);
      } else {
        fetch_ahead(ahead, 2 * (slice * kPairs + c)), fetch_ahead(ahead, 2 * (slice * kPairs + c) + 1);
        interleave_quarters(keys, keys + kPage, w);
      }
      accumulate_pairs<R>(w, q + c, acc);
    }
  if constexpr (!INTERLEAVED) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) out_of_quarters(acc[r][0], acc[r][1]), out_of_quarters(acc[r][2], acc[r][3]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) store(scores + r * kPage + j * kLanes, acc[r][j]);
}

// values of the chunk: acc[r] = acc[r] * fade[r] + sum over slots of bf16(p[r][slot]) * values[slot]
template <int R, bool INTERLEAVED>
THRIFTY_INLINE void weigh_pairs(const uint32_t* pairs, const float* fade, const uint16_t* values, int slots, int dim,
                                float* acc_rows, const uint8_t* ahead) {
  for (int c = 0; c < dim; c += 64) {
    V acc[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[r][j] = mul(load(acc_rows + (size_t)r * dim + c + j * kLanes), set1(fade[r]));
    if constexpr (!INTERLEAVED) {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) into_quarters(acc[r][0], acc[r][1]), into_quarters(acc[r][2], acc[r][3]);
    }
    for (int i = 0; i < slots; i += 2) {
      I w[4];
      const uint16_t* row = values + (size_t)i * dim + (INTERLEAVED ? 2 * c : c);
      if constexpr (INTERLEAVED) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) w[j] = load_bytes(row + j * 2 * kLanes);
      } else {
        fetch_ahead(ahead, c / 64 * kPage + i), fetch_ahead(ahead, c / 64 * kPage + i + 1);
        interleave_quarters(row, i + 1 < slots ? row + dim : nullptr, w);
      }
      accumulate_pairs<R>(w, pairs + i / 2, acc);
    }
    if constexpr (!INTERLEAVED) {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) out_of_quarters(acc[r][0], acc[r][1]), out_of_quarters(acc[r][2], acc[r][3]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) store(acc_rows + (size_t)r * dim + c + j * kLanes, acc[r][j]);
  }
}

}  // namespace thrifty::THRIFTY_ISA
