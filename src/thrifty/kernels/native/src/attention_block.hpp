// Scores, online softmax and values of a few rows over one page. Included once per instruction set.
#pragma once
#include "attention_page.hpp"

namespace thrifty::THRIFTY_ISA {

// Two cache lines of what is needed next; a decode step reads each page once, so only this hides the memory's latency.
THRIFTY_INLINE void fetch_ahead(const uint8_t* ahead, int step) {
  if (!ahead) return;
  __builtin_prefetch(ahead + (size_t)step * 128), __builtin_prefetch(ahead + (size_t)step * 128 + 64);
}

// scores[r][slot] = sum over channels of q[c][r] * keys[c][slot]
template <int R, class T> THRIFTY_INLINE void score(const float* q, const T* keys, int dim, float* scores, const uint8_t* ahead) {
  constexpr int N = kScoreVectors;
  for (int j = 0; j < 4; j += N) {
    V acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) acc[r][v] = zero();
    const T* k = keys + j * kLanes;
    for (int c = 0; c < dim; c++, k += kPage) {
      if (j == 0) fetch_ahead(ahead, c);
      V x[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) x[v] = load_as_float(k + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V w = set1(q[c * R + r]);
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) acc[r][v] = fma(w, x[v], acc[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) store(scores + r * kPage + (j + v) * kLanes, acc[r][v]);
  }
}

// values of the chunk: acc[r] = acc[r] * fade[r] + sum over slots of p[r][slot] * values[slot]
template <int R, class T>
THRIFTY_INLINE void weigh(const float* p, const float* fade, const T* values, int slots, int dim, float* acc_rows, const uint8_t* ahead) {
  constexpr int N = kScoreVectors;
  for (int j = 0; j < dim / kLanes; j += N) {
    V acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) acc[r][v] = mul(load(acc_rows + (size_t)r * dim + (j + v) * kLanes), set1(fade[r]));
    const T* x = values + j * kLanes;
    for (int s = 0; s < slots; s++, x += dim) {
      if (j % 4 == 0) fetch_ahead(ahead, j / 4 * kPage + s);
      V y[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) y[v] = load_as_float(x + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const V w = set1(p[r * kPage + s]);
#pragma GCC unroll 8
        for (int v = 0; v < N; v++) acc[r][v] = fma(w, y[v], acc[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < N; v++) store(acc_rows + (size_t)r * dim + (j + v) * kLanes, acc[r][v]);
  }
}

// Bit i: row `row` of a tree of uncommitted rows sees slot i of the block.
THRIFTY_INLINE uint64_t tree_bits(const AttendArgs& a, int row, const Block& b) {
  const int own = a.slots - a.n - b.first_slot;  // where the step's own rows start
  if (own >= kPage) return ~0ull;
  if (own <= -kPage) return 0;
  return own > 0 ? a.tree[row] << own | ((1ull << own) - 1) : a.tree[row] >> -own;
}

// A window counts the rows of the path only. A block of which the row sees nothing has an empty range.
THRIFTY_INLINE void tree_limits(const AttendArgs& a, int row, const Block& b, int& low, int& high) {
  const int limit = a.slots - a.n + __builtin_popcountll(a.tree[row]) - b.first_slot;
  low = a.window > 0 && limit > a.window ? limit - a.window : 0;
  const uint64_t bits = tree_bits(a, row, b) & (b.slots < kPage ? (1ull << b.slots) - 1 : ~0ull) & (low < kPage ? ~0ull << low : 0);
  high = bits ? kPage - __builtin_clzll(bits) : 0;
}

THRIFTY_INLINE void hide_other_paths(const AttendArgs& a, int row, const Block& b, V* x) {
  const uint64_t bits = tree_bits(a, row, b);
  if (bits == ~0ull) return;
  float s[kPage];
  for (int j = 0; j < 4; j++) store(s + j * kLanes, x[j]);
  for (int i = 0; i < kPage; i++)
    if (!(bits >> i & 1)) s[i] = kLowest;
  for (int j = 0; j < 4; j++) x[j] = load(s + j * kLanes);
}

// Soft cap, bias and mask of one row's scores.
THRIFTY_INLINE void adjust_scores(float* s, const AttendArgs& a, const Block& b, int row, int low, int high, V* x) {
  const float* bias = b.span->bias ? b.span->bias + (size_t)b.page * kPage : nullptr;
  for (int j = 0; j < 4; j++) {
    x[j] = load(s + j * kLanes);
    if (a.softcap > 0.0f) x[j] = mul(set1(a.softcap), hyperbolic_tangent(div(x[j], set1(a.softcap))));
    if (bias) x[j] = add(x[j], load_some(bias + j * kLanes, b.slots - j * kLanes));
    if (low > j * kLanes || high < (j + 1) * kLanes) x[j] = keep(x[j], low - j * kLanes, high - j * kLanes, set1(kLowest));
  }
  if (a.tree) hide_other_paths(a, row, b, x);
}

// Scores of R rows -> probabilities relative to each row's new maximum; fade: what shrinks the row's earlier values.
template <int R> THRIFTY_INLINE void soften(float* s, const AttendArgs& a, const Block& b, Tile& t, int first, float* fade) {
  const bool plain = a.softcap <= 0.0f && !b.span->bias && !a.tree;
  float top[kLanes] = {}, before[kLanes] = {};
  for (int r = 0; r < R; r++) {
    const int low = t.low[first + r], high = t.high[first + r];
    V x[4];
    if (plain && low == 0 && high == kPage) {
      for (int j = 0; j < 4; j++) x[j] = load(s + r * kPage + j * kLanes);
    } else {
      adjust_scores(s + r * kPage, a, b, t.first_row + (first + r) / a.group, low, high, x);
      for (int j = 0; j < 4; j++) store(s + r * kPage + j * kLanes, x[j]);
    }
    const float best = reduce_max(max(max(x[0], x[1]), max(x[2], x[3])));
    before[r] = t.chunk_max[first + r];
    top[r] = best > before[r] ? best : before[r];
    t.chunk_max[first + r] = top[r];
  }
  store(fade, exponential_bounded(sub(load(before), load(top))));
  for (int r = 0; r < R; r++) {
    const int low = t.low[first + r], high = t.high[first + r];
    const V shift = set1(top[r]);
    V p[4];
    for (int j = 0; j < 4; j++) p[j] = exponential_bounded(sub(load(s + r * kPage + j * kLanes), shift));
    if (low > 0 || high < kPage)
      for (int j = 0; j < 4; j++) p[j] = keep(p[j], low - j * kLanes, high - j * kLanes, zero());
    for (int j = 0; j < 4; j++) store(s + r * kPage + j * kLanes, p[j]);
    t.chunk_sum[first + r] = t.chunk_sum[first + r] * fade[r] + reduce_add(add(add(p[0], p[1]), add(p[2], p[3])));
  }
}

template <int R, class T>
static void block_rows(const AttendArgs& a, const Block& b, Tile& t, int first, const T* keys, const T* values) {
  float fade[kLanes];
  constexpr bool kDirect = sizeof(T) == 2;  // read from the cache itself, not from the converted page
  score<R>(t.q + (size_t)first * t.dim, keys, t.dim, t.scores, kDirect ? (const uint8_t*)values : nullptr);
  soften<R>(t.scores, a, b, t, first, fade);
  weigh<R>(t.scores, fade, values, b.slots, t.dim, t.chunk + (size_t)first * t.dim, kDirect ? b.next : nullptr);
}

template <class T>
static void block_group(const AttendArgs& a, const Block& b, Tile& t, int first, int count, const T* keys, const T* values) {
  switch (count) {
    case 1: return block_rows<1>(a, b, t, first, keys, values);
    case 2: return block_rows<2>(a, b, t, first, keys, values);
    case 3: return block_rows<3>(a, b, t, first, keys, values);
#define THRIFTY_WIDE(R) case R: if constexpr (kScoreRows >= R) return block_rows<R>(a, b, t, first, keys, values); else return;
    THRIFTY_WIDE(4)
    THRIFTY_WIDE(5)
    THRIFTY_WIDE(6)
#undef THRIFTY_WIDE
  }
}

}  // namespace thrifty::THRIFTY_ISA
