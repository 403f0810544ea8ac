// Scores and values straight from codes. Included where the instruction set has dot products of bf16 pairs and of
// bytes.
//
// A score is sum over channels of q (scale * code + minimum) = sum of (q scale) (code - middle) + sum of q (minimum +
// middle * scale), codes exact. q scale is rounded to whole steps, one step for the 64 channels of a page: for 4 and 2
// bits to int8, for 8 bits to 15 bits, of which two bytes are made. Its error stays below the rounding of the cache
// itself (docs/performance.md), and sums are exact. Values likewise, with weights times scales.
#pragma once
#include "attention/attention_pairs.hpp"

namespace thrifty::THRIFTY_ISA {

// Products of 64 numbers of R rows with the scales of each of H groups of a page (keys) or of 64 channels (values),
// ready to be multiplied with codes; what minimums and middles add is kept apart. Vector j of 16 codes is of group j *
// H / 4.
template <int B, int H, int R> struct Factors {
  using Sum = I;
  static constexpr int kParts = B == 8 ? 2 : 1;               // bytes of a product, the high one first
  static constexpr float kMost = B == 8 ? 16256.0f : 127.0f;  // steps; 127 times 128
  static constexpr int kSteps = 8 / B;                        // vectors of bytes in one of codes
  uint32_t bytes[kParts][H][R][kPage / 4];
  float scale[kLanes], base[H][kLanes];

  // x [row][group][vector]: the products; adds [group][row]: what adds up to the bases, lane by lane.
  THRIFTY_SHARED void set(const V (*x)[H][4], V (*adds)[R]) {
    V most[R];
    for (int r = 0; r < R; r++) {
      most[r] = zero();
      for (int h = 0; h < H; h++)
        for (int i = 0; i < 4; i++) most[r] = largest_absolute(most[r], x[r][h][i]);
    }
    float inverse[kLanes];
    const V step = mul(reduce_rows_max<R>(most), set1(1.0f / kMost));
    store(scale, step), store(inverse, div(set1(1.0f), max(step, set1(1e-30f))));
    for (int r = 0; r < R; r++) {
      const V by = set1(inverse[r]), middle = set1(-kMiddle<B> * scale[r]);  // codes are used as they are
      for (int h = 0; h < H; h++) {
        const V y[4] = {mul(x[r][h][0], by), mul(x[r][h][1], by), mul(x[r][h][2], by), mul(x[r][h][3], by)};
        adds[h][r] = fma(put(y, h, r), middle, adds[h][r]);
      }
    }
    for (int h = 0; h < H; h++) store(base[h], reduce_rows_add<R>(adds[h]));
  }
  static THRIFTY_SHARED Sum none() { return no_dots(); }
  // sums[row][vector] += codes of rows `row`.. of four vectors times one part of the products.
  THRIFTY_SHARED void add_codes(const uint8_t* codes, int part, int row, Sum (*sums)[4]) const {
    I raw[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) raw[j] = load_bytes(codes + 64 * j);
#pragma GCC unroll 4
    for (int k = 0; k < kSteps; k++) {
      I w[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
        if constexpr (B == 8) w[j] = raw[j];
        else w[j] = code_bytes<B>(raw[j], k);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sums[r][j] = dot_bytes(sums[r][j], w[j], &bytes[part][j * H / 4][r][row / 4 + k]);
    }
  }
  // Between two parts.
  static THRIFTY_SHARED void shift(Sum (*sums)[4]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sums[r][j] = times_128(sums[r][j]);
  }
  THRIFTY_SHARED V total(Sum sum, int r, int h) const {
    return fma(dots_as_floats(sum), set1(scale[r]), set1(base[h][r]));
  }

 private:
  // Rounds 64 numbers and keeps them. Returns their sums, lane by lane.
  THRIFTY_SHARED V put(const V* y, int h, int r) {
    if constexpr (B == 8) {
      I high, low;
      split_bytes(y, high, low);
      store_bytes(bytes[0][h][r], high), store_bytes(bytes[1][h][r], low);
      return fma(sums_of_bytes(high), set1(128.0f), sums_of_bytes(low));
    } else {
      const I rounded = ordered_bytes<B>(y);
      store_bytes(bytes[0][h][r], rounded);
      return sums_of_bytes(rounded);
    }
  }
};

// Numbers [row][stride] times the scales of all groups, `step` parameters apart: of the first `count` of 64, and of the
// first `used` groups alone where the others have no slots, for parameters behind the last slot may be anything.
template <int B, int H, int R>
THRIFTY_INLINE void fill(Factors<B, H, R>& f, const float* numbers, int stride, const uint16_t* scales,
                         const uint16_t* minimums, int step, int count, int used) {
  V x[R][H][4], adds[H][R];
  for (int h = 0; h < H; h++)
    for (int r = 0; r < R; r++) adds[h][r] = zero();
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      V s = load_half(scales + h * step + i * kLanes), m = load_half(minimums + h * step + i * kLanes);
      if (h > 0 && h >= used) s = m = zero();
      if (count < kPage) s = keep(s, 0, count - i * kLanes, zero()), m = keep(m, 0, count - i * kLanes, zero());
      m = fma(s, set1(kMiddle<B>), m);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V n = load(numbers + (size_t)r * stride + i * kLanes);
        x[r][h][i] = mul(n, s), adds[h][r] = fma(n, m, adds[h][r]);
      }
    }
  f.set(x, adds);
}

// Four lines of the next page's codes beside as many of this one, in one part or shared out over both; asked for all at
// once, they would wait for each other.
template <int PARTS> THRIFTY_INLINE void fetch_codes(const uint8_t* next, size_t offset, int part) {
  if (!next) return;
#pragma GCC unroll 4
  for (int j = 0; j < 4 / PARTS; j++) fetch_line(next + offset + 64 * (part * 4 / PARTS + j));
}
// Of its parameters, those of the slice of 64 channels from c on, or as many.
template <int H> THRIFTY_INLINE void fetch_params(const uint16_t* next, int c) {
  if (!next) return;
#pragma GCC unroll 16
  for (int i = 0; i < 4 * H; i++) fetch_line((const uint8_t*)next + (size_t)(c / 64 * 4 * H + i) * 64);
}

// next: the page that is read next, nothing where it is not one of codes of this format.
template <int B, int H, int R>
THRIFTY_INLINE void score_codes(const Span& s, int page, const float* q, int slots, int dim, float* scores,
                                const CodePage& next) {
  const CodePage p = code_page(s, page, dim);
  Factors<B, H, R> f;
  const uint8_t* codes = p.keys;
  for (int c = 0; c < dim; c += 64) {
    fill<B, H, R>(f, q + c, dim, p.key_params + c, p.key_params + H * dim + c, dim, kPage,
                  (slots * H + kPage - 1) / kPage);
    typename Factors<B, H, R>::Sum sums[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sums[r][j] = f.none();
    for (int part = 0; part < f.kParts; part++) {
      if (part > 0) f.shift(sums);
      for (int row = 0; row < 64; row += code_rows(B)) {
        fetch_codes<f.kParts>(next.keys, (size_t)(codes - p.keys) + row / code_rows(B) * 4 * 64, part);
        f.add_codes(codes + row / code_rows(B) * 4 * 64, part, row, sums);
      }
    }
    fetch_params<H>(next.key_params, c);
    codes += 64 / code_rows(B) * 4 * 64;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        float* to = scores + r * kPage + j * kLanes;
        const V x = f.total(sums[r][j], r, j * H / 4);
        store(to, c ? add(load(to), x) : x);
      }
  }
}

template <int B, int H, int R>
THRIFTY_INLINE void weigh_codes(const Span& s, int page, const float* weights, const float* fade, int slots, int dim,
                                float* acc_rows, const CodePage& next) {
  const CodePage p = code_page(s, page, dim);
  Factors<B, H, R> f;
  for (int c = 0; c < dim; c += 64) {
    const uint16_t* scales = p.value_params + c / 64 * H * kPage;
    fill<B, H, R>(f, weights, kPage, scales, scales + dim / 64 * H * kPage, kPage, slots, H);
    typename Factors<B, H, R>::Sum sums[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) sums[r][j] = f.none();
    for (int part = 0; part < f.kParts; part++) {
      if (part > 0) f.shift(sums);
      for (int row = 0; row < kPage; row += code_rows(B)) {
        const size_t offset = ((size_t)(row / code_rows(B)) * (dim / kLanes) + c / kLanes) * 64;
        fetch_codes<f.kParts>(next.values, offset, part);
        f.add_codes(p.values + offset, part, row, sums);
      }
    }
    fetch_params<H>(next.value_params, c);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        float* to = acc_rows + (size_t)r * dim + c + j * kLanes;
        store(to, fma(load(to), set1(fade[r]), f.total(sums[r][j], r, j * H / 4)));
      }
  }
}

}  // namespace thrifty::THRIFTY_ISA
