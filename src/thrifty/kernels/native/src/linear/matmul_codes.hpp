// Products of tiles of coded weights with int8 activations: N neighbouring tiles, M rows.
//
// The order of floating-point operations of an output element is fixed (kernels/reference/matmul.py, superblock.py). It
// does not depend on how many rows or tiles run together, so decode, prefill and any batch agree to the bit.
#pragma once

namespace thrifty::THRIFTY_ISA {

THRIFTY_INLINE void fetch_codes(const uint8_t* from, int bytes) {
#pragma GCC unroll 8
  for (int line = 0; line < bytes; line += 64) fetch_line(from + kFetchBytes + line);
}

// Bytes of a tile's codes.
template <Layout L, bool MINIMUM> THRIFTY_SHARED size_t tile_step(const Linear& w) {
  return two_levels(L) ? (size_t)w.superblocks() * (size_t)record_bytes(L)
                       : (size_t)w.blocks() * (size_t)codes_of(L, MINIMUM).bytes();
}

// acc[n * M + i] += what one block of one level gives: acc = fma(dot, scale * xs, acc), then acc = fma(minimum, xs *
// sum(q), acc).
template <bool MINIMUM, int N, int M, Codes C, bool KEPT>
THRIFTY_INLINE void add_group_block(const CodeBlock<C, KEPT>* blocks, const V* scale, const V* minimum,
                                    const ActivationBlock* x, V* acc) {
  V d[N * M];
  dots<0, 8, N, M>(blocks, x, d);
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

// The minimums of 16 rows' groups: as stored, or from the zero points.
template <Layout L> THRIFTY_INLINE V group_minimum(const Linear& w, size_t at, V scale) {
  if constexpr (!traits(L).zeros) return load_half(w.minimums + at);
  if (!w.zeros) return load_half(w.minimums + at);
  float below[kLanes];
  for (int i = 0; i < kLanes; i++) below[i] = (float)(codes_of(L, true).offset - w.zeros[at + (size_t)i]);
  return mul(scale, load(below));
}

// One tile of one level, blocks in order.
template <Layout L, bool MINIMUM, int M>
THRIFTY_INLINE void group_tile(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  constexpr Codes C = codes_of(L, MINIMUM);
  constexpr bool kKept = M == 1;
  const int blocks = w.blocks(), per_group = w.group / kBlockColumns, groups = (blocks + per_group - 1) / per_group;
  const uint8_t* codes = w.codes + (size_t)tile * tile_step<L, MINIMUM>(w);
  const uint16_t* scales = w.scales + (size_t)tile * groups * kLanes;
  const size_t first = (size_t)tile * groups * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int g = 0; g < groups; g++, scales += kLanes) {
    const V scale = load_half(scales),
            minimum = MINIMUM ? group_minimum<L>(w, first + (size_t)g * kLanes, scale) : zero();
    const int end = (g + 1) * per_group < blocks ? (g + 1) * per_group : blocks;
    for (int b = g * per_group; b < end; b++, codes += C.bytes(), x += kPanel) {
      if constexpr (M == 1) fetch_codes(codes, C.bytes());
      const CodeBlock<C, kKept> block(codes);
      add_group_block<MINIMUM, 1, M>(&block, &scale, &minimum, x, acc);
    }
  }
}

// The sub-scales of a record, 64 bytes a vector. Some of it may be left out of registers.
template <Layout L> struct SubWords {
  Words w[4];
  template <class F> THRIFTY_SHARED SubWords(const uint8_t* record, F&& hold) {
    constexpr int kVectors = sub_scales(L).bytes / 64;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; i++) w[i] = hold(load_words(record + 64 * i));
    if constexpr (sub_scales(L).bytes % 64 != 0) w[kVectors] = hold(load_short_words(record + 64 * kVectors));
  }
  // Sub-scale and sub-minimum i: whole numbers.
  THRIFTY_SHARED V scale(int i) const { return LayoutOf<L>::scale(*this, i); }
  THRIFTY_SHARED V minimum(int i) const { return LayoutOf<L>::minimum(*this, i); }

  // Parts of vectors of words, from bit `shift` of a word on.
  THRIFTY_SHARED V nibble(int vector, int shift) const { return words_as_floats(field<4>(w[vector], shift)); }
  THRIFTY_SHARED V six(int low, int low_shift, int high, int high_shift) const {
    return words_as_floats(six_bits(w[low], low_shift, w[high], high_shift));
  }
  THRIFTY_SHARED V signed_byte(int vector, int byte) const {
    return words_as_floats(THRIFTY_ISA::signed_byte(w[vector], byte));
  }
  static THRIFTY_SHARED V less_32(V x) { return sub(x, set1(32.0f)); }
};

// s += what a block of a superblock gives; scale(n, part) is its sub-scale. Of 32 columns: s = fma(dot, sc * xs, s). Of
// 16: f = dot0 * sc0, f = fma(dot1, sc1, f), s = fma(f, xs, s).
template <int COLUMNS, int N, int M, Codes C, bool KEPT, class F>
THRIFTY_INLINE void add_block(const CodeBlock<C, KEPT>* blocks, F&& scale, const ActivationBlock* x, V* s) {
  V d[N * M];
  if constexpr (COLUMNS == kBlockColumns) {
    dots<0, 8, N, M>(blocks, x, d);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = scale(n, 0);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) s[n * M + i] = fma(d[n * M + i], mul(sc, set1(x[i].scale)), s[n * M + i]);
    }
  } else {
    V f[N * M];
    dots<0, 4, N, M>(blocks, x, f);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = scale(n, 0);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++) f[n * M + i] = mul(f[n * M + i], sc);
    }
    dots<4, 4, N, M>(blocks, x, d);
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const V sc = scale(n, 1);
#pragma GCC unroll 16
      for (int i = 0; i < M; i++)
        s[n * M + i] = fma(fma(d[n * M + i], sc, f[n * M + i]), set1(x[i].scale), s[n * M + i]);
    }
  }
}

// t += what the sub-minimums of a block give: t = fma(m, xs * sum(q), t); of 16 columns first for the first half, then
// the second.
template <int COLUMNS, int N, int M, class F>
THRIFTY_INLINE void add_minimum(F&& minimum, const ActivationBlock* x, V* t) {
  constexpr int kHalves = kBlockColumns / COLUMNS;
#pragma GCC unroll 2
  for (int half = 0; half < kHalves; half++) {
    V m[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) m[n] = minimum(n, half);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const int minus8 = half ? x[i].minus8 - x[i].minus8_first : x[i].minus8_first;
      const V sum = set1(kHalves == 1 ? x[i].scaled_sum : x[i].scale * (-0.125f * (float)minus8));
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) t[n * M + i] = fma(m[n], sum, t[n * M + i]);
    }
  }
}

// One tile of two levels. Superblocks in order: acc = fma(d, s, acc), then acc = fma(-dmin, t, acc); s and t begin at 0
// in each.
template <Layout L, int M>
THRIFTY_INLINE void superblock_tile(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  constexpr SubScales S = sub_scales(L);
  constexpr Codes C = codes_of(L, false);
  constexpr bool kKept = M == 1;
  constexpr int kParts = kBlockColumns / S.columns;
  const int count = w.superblocks();
  const uint8_t* record = w.codes + (size_t)tile * tile_step<L, false>(w);
  const uint16_t* scales = w.scales + (size_t)tile * count * kLanes;
  const uint16_t* minimums = S.minimums ? w.minimums + (size_t)tile * count * kLanes : nullptr;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++) acc[i] = zero();
  for (int k = 0; k < count; k++, record += record_bytes(L), scales += kLanes, x += kSuperblock * kPanel) {
    V s[M], t[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) s[i] = t[i] = zero();
    if constexpr (M == 1) fetch_codes(record, S.bytes);
    const SubWords<L> subs(record, [](Words v) __attribute__((always_inline)) { return kKept ? kept(v) : v; });
    const auto add = [&](int b) __attribute__((always_inline)) {
      const uint8_t* codes = record + S.bytes + b * C.bytes();
      if constexpr (M == 1) fetch_codes(codes, C.bytes());
      const CodeBlock<C, kKept> block(codes);
      add_block<S.columns, 1, M>(
          &block, [&](int, int part) __attribute__((always_inline)) { return subs.scale(kParts * b + part); },
          x + b * kPanel, s);
      if constexpr (S.minimums)
        add_minimum<S.columns, 1, M>([&](int, int part)
                                         __attribute__((always_inline)) { return subs.minimum(kParts * b + part); },
                                     x + b * kPanel, t);
    };
    if constexpr (M == 1) {
#pragma GCC unroll 8
      for (int b = 0; b < kSuperblock; b++) add(b);
    } else {
      for (int b = 0; b < kSuperblock; b++) add(b);
    }
    const V d = load_half(scales), minus = S.minimums ? sub(zero(), load_half(minimums + (size_t)k * kLanes)) : zero();
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      acc[i] = fma(d, s[i], acc[i]);
      if constexpr (S.minimums) acc[i] = fma(minus, t[i], acc[i]);
    }
  }
}

template <Layout L, bool MINIMUM, int M>
THRIFTY_INLINE void code_tile(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  if constexpr (two_levels(L)) superblock_tile<L, M>(w, tile, x, acc);
  else group_tile<L, MINIMUM, M>(w, tile, x, acc);
}

}  // namespace thrifty::THRIFTY_ISA
