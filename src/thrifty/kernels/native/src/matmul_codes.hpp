// Products of tiles of coded weights with int8 activations, as they are stored: N neighbouring tiles, M rows.
//
// The order of floating-point operations of an output element is fixed (kernels/reference/matmul.py, superblock.py). It does not
// depend on how many rows or tiles run together, so decode, prefill and any batch agree to the bit.
#pragma once

namespace thrifty::THRIFTY_ISA {

THRIFTY_INLINE void fetch_codes(const uint8_t* from, int bytes) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(from + kFetchBytes + line);
}

// The minimums of 16 rows' groups: as stored, or from the zero points.
template <Layout L> THRIFTY_INLINE V group_minimum(const Linear& w, size_t at, V scale) {
  if constexpr (L != Layout::int4 && L != Layout::int8) return load_half(w.minimums + at);
  if (!w.zeros) return load_half(w.minimums + at);
  float below[kLanes];
  for (int i = 0; i < kLanes; i++) below[i] = (float)((L == Layout::int8 ? 128 : 0) - w.zeros[at + (size_t)i]);
  return mul(scale, load(below));
}

// One level. Blocks in order: acc = fma(dot, scale * xs, acc), then acc = fma(minimum, xs * sum(q), acc). acc[n * M + i].
template <Layout L, bool MINIMUM, int N, int M> THRIFTY_INLINE void group_tiles(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  constexpr Codes C = codes_of(L, MINIMUM);
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  const size_t code_step = (size_t)blocks * C.bytes(), group_step = (size_t)groups * kLanes;
  const uint8_t* codes = w.codes + (size_t)tile * code_step;
  const uint16_t* scales = w.scales + (size_t)tile * group_step;
  const size_t first = (size_t)tile * group_step;
#pragma GCC unroll 16
  for (int i = 0; i < N * M; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++, scales += kLanes) {
    V scale[N], minimum[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      scale[n] = load_half(scales + (size_t)n * group_step);
      minimum[n] = MINIMUM ? group_minimum<L>(w, first + (size_t)n * group_step + (size_t)g * kLanes, scale[n]) : zero();
    }
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += C.bytes(), x += kPanel) {
      V d[N * M];
      if constexpr (M == 1) fetch_codes(codes, C.bytes());
      dots<C, 0, 8, N, M>(codes, code_step, x, d);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) {
        const V s = set1(x[i].scale), sum = MINIMUM ? set1(x[i].scaled_sum) : zero();
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) {
          acc[n * M + i] = fma(d[n * M + i], mul(scale[n], s), acc[n * M + i]);
          if constexpr (MINIMUM) acc[n * M + i] = fma(minimum[n], sum, acc[n * M + i]);
        }
      }
    }
  }
}

// Sub-scale and sub-minimum i of a record: whole numbers.
template <Layout L> THRIFTY_INLINE V sub_scale(const uint8_t* record, int i) {
  if constexpr (L == Layout::q2_k) return words_as_floats(field<4>(load_words(record + 64 * (i / 8)), 4 * (i % 8)));
  if constexpr (L == Layout::q6_k) return words_as_floats(signed_byte(load_words(record + 64 * (i / 4)), i % 4));
  if constexpr (L == Layout::q4_k || L == Layout::q5_k) return words_as_floats(six_bits(load_words(record), 4 * i, load_words(record + 128), 2 * i));
  if constexpr (L == Layout::q3_k) return sub(words_as_floats(six_bits(load_words(record + 64 * (i / 8)), 4 * (i % 8), load_words(record + 128), 2 * i)), set1(32.0f));
  return sub(words_as_floats(six_bits(load_words(record), 4 * i, load_short_words(record + 64), 2 * i)), set1(32.0f));
}
template <Layout L> THRIFTY_INLINE V sub_minimum(const uint8_t* record, int i) {
  if constexpr (L == Layout::q2_k) return words_as_floats(field<4>(load_words(record + 128 + 64 * (i / 8)), 4 * (i % 8)));
  return words_as_floats(six_bits(load_words(record + 64), 4 * i, load_words(record + 128), 16 + 2 * i));
}

// s += what block b of a superblock gives. Sub-scales of 32 columns: s = fma(dot, sc * xs, s). Of 16: f = dot0 * sc0,
// f = fma(dot1, sc1, f), s = fma(f, xs, s).
template <Layout L, int N, int M> THRIFTY_INLINE void add_block(const uint8_t* record, size_t step, int b, const ActivationBlock* x, V* s) {
  constexpr Codes C = codes_of(L, false);
  const uint8_t* codes = record + sub_scales(L).bytes + b * C.bytes();
  if constexpr (M == 1) fetch_codes(codes, C.bytes());
  V d[N * M];
  if constexpr (sub_scales(L).columns == kBlockColumns) {
    dots<C, 0, 8, N, M>(codes, step, x, d);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = sub_scale<L>(record + (size_t)n * step, b);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) s[n * M + i] = fma(d[n * M + i], mul(sc, set1(x[i].scale)), s[n * M + i]);
    }
  } else {
    V f[N * M];
    dots<C, 0, 4, N, M>(codes, step, x, f);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = sub_scale<L>(record + (size_t)n * step, 2 * b);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) f[n * M + i] = mul(f[n * M + i], sc);
    }
    dots<C, 4, 4, N, M>(codes, step, x, d);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = sub_scale<L>(record + (size_t)n * step, 2 * b + 1);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) s[n * M + i] = fma(fma(d[n * M + i], sc, f[n * M + i]), set1(x[i].scale), s[n * M + i]);
    }
  }
}

// t += what the sub-minimums of block b give: t = fma(m, xs * sum(q), t); of 16 columns first for the first half, then the second.
template <Layout L, int N, int M> THRIFTY_INLINE void add_minimum(const uint8_t* record, size_t step, int b, const ActivationBlock* x, V* t) {
  constexpr int kHalves = kBlockColumns / sub_scales(L).columns;
#pragma GCC unroll 2
  for (int half = 0; half < kHalves; half++) {
    V m[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) m[n] = sub_minimum<L>(record + (size_t)n * step, kHalves * b + half);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const int minus8 = half ? x[i].minus8 - x[i].minus8_first : x[i].minus8_first;
      const V sum = set1(kHalves == 1 ? x[i].scaled_sum : x[i].scale * (-0.125f * (float)minus8));
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) t[n * M + i] = fma(m[n], sum, t[n * M + i]);
    }
  }
}

// Two levels. Superblocks in order: acc = fma(d, s, acc), then acc = fma(-dmin, t, acc); s and t begin at 0 in each.
template <Layout L, int N, int M> THRIFTY_INLINE void superblock_tiles(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  constexpr SubScales S = sub_scales(L);
  const int count = w.superblocks();
  const size_t step = (size_t)count * record_bytes(L), scale_step = (size_t)count * kLanes;
  const uint8_t* record = w.codes + (size_t)tile * step;
  const uint16_t* scales = w.scales + (size_t)tile * scale_step;
  const uint16_t* minimums = S.minimums ? w.minimums + (size_t)tile * scale_step : nullptr;
#pragma GCC unroll 16
  for (int i = 0; i < N * M; i++) acc[i] = zero();
  for (int k = 0; k < count; k++, record += record_bytes(L), scales += kLanes, x += kSuperblock * kPanel) {
    V s[N * M];
#pragma GCC unroll 16
    for (int i = 0; i < N * M; i++) s[i] = zero();
    if constexpr (M == 1) {
      fetch_codes(record, S.bytes);
#pragma GCC unroll 8
      for (int b = 0; b < kSuperblock; b++) add_block<L, N, M>(record, step, b, x + b * kPanel, s);
    } else {
      for (int b = 0; b < kSuperblock; b++) add_block<L, N, M>(record, step, b, x + b * kPanel, s);
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V d = load_half(scales + (size_t)n * scale_step);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) acc[n * M + i] = fma(d, s[n * M + i], acc[n * M + i]);
    }
    if constexpr (S.minimums) {
      V t[N * M];
#pragma GCC unroll 16
      for (int i = 0; i < N * M; i++) t[i] = zero();
#pragma GCC unroll 8
      for (int b = 0; b < kSuperblock; b++) add_minimum<L, N, M>(record, step, b, x + b * kPanel, t);
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) {
        const V minus = sub(zero(), load_half(minimums + (size_t)k * kLanes + (size_t)n * scale_step));
#pragma GCC unroll 16
        for (int i = 0; i < M; i++) acc[n * M + i] = fma(minus, t[n * M + i], acc[n * M + i]);
      }
    }
  }
}

template <Layout L, bool MINIMUM, int N, int M> THRIFTY_INLINE void code_tiles(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  if constexpr (two_levels(L)) superblock_tiles<L, N, M>(w, tile, x, acc);
  else group_tiles<L, MINIMUM, N, M>(w, tile, x, acc);
}

}  // namespace thrifty::THRIFTY_ISA
