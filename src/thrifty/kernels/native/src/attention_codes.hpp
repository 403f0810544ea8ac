// Scores and values straight from codes, as dot products of bf16 pairs. Included where the instruction set has them.
//
// A score is sum over channels of q (scale * code + minimum) = sum of (q scale) (code - middle) + sum of q (minimum +
// middle * scale), with q scale rounded to bf16 and codes exact; values likewise, with weights times scales rounded.
#pragma once
#include "attention_pairs.hpp"

namespace thrifty::THRIFTY_ISA {

// 64 channels of R queries times the key scales of each half page, as pairs [row][half][kPairs]; base[row][half] += what
// the minimums add.
template <int B, int R> THRIFTY_INLINE void scaled_queries(const CodePage& p, const float* q, int slice, int dim, uint32_t* pairs, float (*base)[2]) {
  const V middle = set1(CodePairs<B>::kMiddle);
  for (int h = 0; h < 2; h++) {
    const uint16_t *scales = p.key_params + h * dim, *minimums = p.key_params + (2 + h) * dim;
    V sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = zero();
    for (int c = slice * 64; c < slice * 64 + 64; c += 2 * kLanes) {
      const V s0 = load_half(scales + c), s1 = load_half(scales + c + kLanes);
      const V m0 = fma(s0, middle, load_half(minimums + c)), m1 = fma(s1, middle, load_half(minimums + c + kLanes));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V q0 = load(q + r * dim + c), q1 = load(q + r * dim + c + kLanes);
        store_bf16((uint16_t*)(pairs + (r * 2 + h) * kPairs + c / 2 - slice * kPairs), mul(q0, s0), mul(q1, s1));
        sum[r] = fma(q1, m1, fma(q0, m0, sum[r]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) base[r][h] += reduce_add(sum[r]);
  }
}

// acc[row][vector] += codes of four vectors times the pairs of the vector's half [row][half]. Vectors in turn, so
// that many chains of sums run side by side.
template <int B, int R> THRIFTY_INLINE void accumulate_codes(const CodePairs<B>& table, const uint8_t* codes, const uint32_t* pairs, V (*acc)[4]) {
  I raw[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) raw[j] = load_bytes(codes + 64 * j);
#pragma GCC unroll 8
  for (int k = 0; k < CodePairs<B>::kSteps; k++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const I w = table.operand(raw[j], k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][j] = dot_pairs(acc[r][j], w, pairs + (r * 2 + j / 2) * kPairs + CodePairs<B>::pair(k));
    }
}

template <int B, int R> THRIFTY_INLINE void score_codes(const Span& s, int page, const float* q, int dim, uint32_t* pairs, float* scores) {
  const CodePage p = code_page(s, page, dim);
  float base[R][2] = {};
  const auto table = CodePairs<B>::make();
  V acc[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[r][j] = zero();
  const uint8_t* codes = p.keys;
  for (int slice = 0; slice < dim / 64; slice++) {
    scaled_queries<B, R>(p, q, slice, dim, pairs, base);
    for (int c = 0; c < kPairs; c += code_rows(B) / 2, codes += 4 * 64) accumulate_codes<B, R>(table, codes, pairs + c, acc);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) store(scores + r * kPage + j * kLanes, add(acc[r][j], set1(base[r][j / 2])));
}

// Weights of R rows times the value scales of two groups of 32 channels, as pairs [row][group][kPairs]; base: what the minimums add.
template <int B, int R> THRIFTY_INLINE void scaled_weights(const CodePage& p, int slice, const float* weights, int slots, int dim, uint32_t* pairs, float (*base)[2]) {
  const V middle = set1(CodePairs<B>::kMiddle);
  for (int g = 0; g < 2; g++) {
    const uint16_t *scales = p.value_params + (2 * slice + g) * kPage, *minimums = scales + dim / 32 * kPage;
    V sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = zero();
    for (int i = 0; i < kPage; i += 2 * kLanes) {
      V s0 = load_half(scales + i), s1 = load_half(scales + i + kLanes);
      V m0 = fma(s0, middle, load_half(minimums + i)), m1 = fma(s1, middle, load_half(minimums + i + kLanes));
      if (slots < kPage) {  // parameters behind the last slot may be anything
        s0 = keep(s0, 0, slots - i, zero()), s1 = keep(s1, 0, slots - i - kLanes, zero());
        m0 = keep(m0, 0, slots - i, zero()), m1 = keep(m1, 0, slots - i - kLanes, zero());
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V w0 = load(weights + r * kPage + i), w1 = load(weights + r * kPage + i + kLanes);
        store_bf16((uint16_t*)(pairs + (r * 2 + g) * kPairs + i / 2), mul(w0, s0), mul(w1, s1));
        sum[r] = fma(w1, m1, fma(w0, m0, sum[r]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) base[r][g] = reduce_add(sum[r]);
  }
}

template <int B, int R>
THRIFTY_INLINE void weigh_codes(const Span& s, int page, const float* weights, const float* fade, int slots, int dim, uint32_t* pairs, float* acc_rows) {
  const CodePage p = code_page(s, page, dim);
  const auto table = CodePairs<B>::make();
  for (int slice = 0; slice < dim / 64; slice++) {
    float base[R][2];
    scaled_weights<B, R>(p, slice, weights, slots, dim, pairs, base);
    V acc[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[r][j] = fma(load(acc_rows + (size_t)r * dim + slice * 64 + j * kLanes), set1(fade[r]), set1(base[r][j / 2]));
    for (int i = 0; i < kPage / 2; i += code_rows(B) / 2) {
      const uint8_t* codes = p.values + ((size_t)(2 * i / code_rows(B)) * (dim / kLanes) + slice * 4) * 64;
      accumulate_codes<B, R>(table, codes, pairs + i, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) store(acc_rows + (size_t)r * dim + slice * 64 + j * kLanes, acc[r][j]);
  }
}

}  // namespace thrifty::THRIFTY_ISA
