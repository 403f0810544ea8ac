// Scores, online softmax and values of a few rows over one page. Included once per instruction set.
#pragma once
#include "attention/attention_page.hpp"
#if defined(THRIFTY_PAIRS)
#include "attention/attention_codes.hpp"
#endif

namespace thrifty::THRIFTY_ISA {

// scores[r][slot] = sum over channels of q[c][r] * keys[c][slot]
template <int R, class T>
THRIFTY_INLINE void score(const float* q, const T* keys, int dim, float* scores, const uint8_t* ahead) {
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

// values of the chunk: acc[r] = acc[r] * fade[r] + sum over slots of p[r][slot] * values[slot], rows `dim` apart
template <int R, class T>
THRIFTY_INLINE void weigh(const float* p, const float* fade, const T* values, int slots, int size, int dim,
                          float* acc_rows, const uint8_t* ahead) {
  constexpr int N = kScoreVectors;
  for (int j = 0; j * kLanes < size; j += N) {
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
  const uint64_t bits =
      tree_bits(a, row, b) & (b.slots < kPage ? (1ull << b.slots) - 1 : ~0ull) & (low < kPage ? ~0ull << low : 0);
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
    if (a.softcap > 0.0f) x[j] = mul(set1(a.softcap * kLog2e), hyperbolic_tangent(div(x[j], set1(a.softcap * kLog2e))));
    if (bias) x[j] = fma(load_some(bias + j * kLanes, b.slots - j * kLanes), set1(kLog2e), x[j]);
    if (low > j * kLanes || high < (j + 1) * kLanes)
      x[j] = keep(x[j], low - j * kLanes, high - j * kLanes, set1(kLowest));
  }
  if (a.tree) hide_other_paths(a, row, b, x);
}

// Where a row's probabilities are accumulated, from the block's first slot on. r: row of the tile.
THRIFTY_INLINE float* accumulated(const AttendArgs& a, const Block& b, const Tile& t, int r) {
  const size_t row = (size_t)(t.first_row + r / a.group), head = (size_t)(a.kv_head * a.group + r % a.group);
  return a.accumulate + row * a.accumulate_row + head * (size_t)a.accumulate_stride + b.first_slot;
}

// Leaves a row's scores where its probabilities will be: rows that have a table each need no second pass over the keys.
THRIFTY_INLINE void leave_scores(const AttendArgs& a, const Block& b, const Tile& t, int r, const V* x) {
  float* to = accumulated(a, b, t, r);
  float s[kPage];
  const bool whole = t.low[r] == 0 && t.high[r] == kPage;
  for (int j = 0; j < 4; j++) store((whole ? to : s) + j * kLanes, x[j]);
  if (!whole)
    for (int i = t.low[r]; i < t.high[r]; i++) to[i] = s[i];
}

// Scores of R rows -> probabilities relative to each row's new maximum, in place or (ROUNDED) as bf16 pairs; fade: what
// shrinks the row's earlier values.
template <int R, bool ROUNDED>
THRIFTY_INLINE void soften(const AttendArgs& a, const Block& b, Tile& t, int first, float* fade) {
  const bool plain = a.softcap <= 0.0f && !b.span->bias && !a.tree;
  float* s = t.scores;
  V most[R], sum[R];
  for (int r = 0; r < R; r++) {
    const int low = t.low[first + r], high = t.high[first + r];
    V x[4];
    if (plain && low == 0 && high == kPage) {
      for (int j = 0; j < 4; j++) x[j] = load(s + r * kPage + j * kLanes);
    } else {
      adjust_scores(s + r * kPage, a, b, t.first_row + (first + r) / a.group, low, high, x);
      for (int j = 0; j < 4; j++) store(s + r * kPage + j * kLanes, x[j]);
    }
    if (a.accumulate && a.accumulate_row) leave_scores(a, b, t, first + r, x);
    most[r] = max(max(x[0], x[1]), max(x[2], x[3]));
  }
  float top[kLanes];
  const V before = load(t.chunk_max + first), now = max(reduce_rows_max<R>(most), before),
          shrink = power_of_two(sub(before, now));
  store(top, now), store(fade, shrink), store_first(t.chunk_max + first, now, R);
  for (int r = 0; r < R; r++) {
    const int low = t.low[first + r], high = t.high[first + r];
    const V shift = set1(top[r]);
    V p[4];
    for (int j = 0; j < 4; j++) p[j] = power_of_two(sub(load(s + r * kPage + j * kLanes), shift));
    if (low > 0 || high < kPage)
      for (int j = 0; j < 4; j++) p[j] = keep(p[j], low - j * kLanes, high - j * kLanes, zero());
    sum[r] = add(add(p[0], p[1]), add(p[2], p[3]));
#if defined(THRIFTY_PAIRS)
    if constexpr (ROUNDED) {
      for (int j = 0; j < 4; j += 2) store_bf16((uint16_t*)(t.pairs + r * kPairs) + j * kLanes, p[j], p[j + 1]);
      continue;
    }
#endif
    for (int j = 0; j < 4; j++) store(s + r * kPage + j * kLanes, p[j]);
  }
  store_first(t.chunk_sum + first, add(mul(load(t.chunk_sum + first), shrink), reduce_rows_add<R>(sum)), R);
}

// Where the scores and values of a page come from: numbers (of the cache itself where T is bf16, else converted) ...
template <class T> struct Numbers {
  static constexpr bool kRounded = false;  // whether weights are taken as bf16 pairs
  const T *keys, *values;
  template <int R> THRIFTY_SHARED void scores(const AttendArgs&, const Block& b, Tile& t, int first) const {
    score<R>(t.q + (size_t)first * t.dim, keys, t.size, t.scores, sizeof(T) == 2 ? ahead_of(b, t.size).keys : nullptr);
  }
  template <int R> THRIFTY_SHARED void add_values(const Block& b, Tile& t, int first, const float* fade) const {
    weigh<R>(t.scores, fade, values, b.slots, t.size, t.dim, t.chunk + (size_t)first * t.dim,
             sizeof(T) == 2 ? ahead_of(b, t.size).values : nullptr);
  }
};
#if defined(THRIFTY_PAIRS)
// ... or bf16 as pairs ...
template <bool INTERLEAVED> struct PairNumbers {
  static constexpr bool kRounded = true;
  const uint16_t *keys, *values;
  template <int R> THRIFTY_SHARED void scores(const AttendArgs&, const Block& b, Tile& t, int first) const {
    score_pairs<R, INTERLEAVED>((const uint32_t*)t.q + (size_t)first * (t.dim / 2), keys, t.size, t.scores,
                                INTERLEAVED ? nullptr : ahead_of(b, t.size).keys);
  }
  template <int R> THRIFTY_SHARED void add_values(const Block& b, Tile& t, int first, const float* fade) const {
    weigh_pairs<R, INTERLEAVED>(t.pairs, fade, values, b.slots, t.dim, t.chunk + (size_t)first * t.dim,
                                INTERLEAVED ? nullptr : ahead_of(b, t.size).values);
  }
};
// ... or codes.
template <int B, int H> struct Codes {
  static constexpr bool kRounded = false;
  template <int R> THRIFTY_SHARED void scores(const AttendArgs&, const Block& b, Tile& t, int first) const {
    if (b.next && t.rows <= kScoreRows) fetch_page(*b.next, b.next_page, t.size);
    score_codes<B, H, R>(*b.span, b.page, t.rows_q + (size_t)first * t.dim, b.slots, t.dim, t.scores);
  }
  template <int R> THRIFTY_SHARED void add_values(const Block& b, Tile& t, int first, const float* fade) const {
    weigh_codes<B, H, R>(*b.span, b.page, t.scores, fade, b.slots, t.dim, t.chunk + (size_t)first * t.dim);
  }
};
#endif

struct Attended {  // scores, softmax and values
  template <int R, class Source>
  static void run(const AttendArgs& a, const Block& b, Tile& t, int first, const Source& source) {
    float fade[kLanes];
    source.template scores<R>(a, b, t, first);
    soften<R, Source::kRounded>(a, b, t, first, fade);
    source.template add_values<R>(b, t, first, fade);
  }
};
struct Scored {  // scores alone
  template <int R, class Source>
  static void run(const AttendArgs& a, const Block& b, Tile& t, int first, const Source& source) {
    source.template scores<R>(a, b, t, first);
  }
};

template <class Work, class Source>
static void rows_group(const AttendArgs& a, const Block& b, Tile& t, int first, int count, const Source& source) {
  switch (count) {
    case 1:
      return Work::template run<1>(a, b, t, first, source);
    case 2:
      return Work::template run<2>(a, b, t, first, source);
    case 3:
      return Work::template run<3>(a, b, t, first, source);
#define THRIFTY_WIDE(R)                                                                  \
  case R:                                                                                \
    if constexpr (kScoreRows >= R) return Work::template run<R>(a, b, t, first, source); \
    else return;
      THRIFTY_WIDE(4)
      THRIFTY_WIDE(5)
      THRIFTY_WIDE(6)
#undef THRIFTY_WIDE
  }
}

// Rows first..first+count-1 of the tile over one page, read in the way of its format. `prepare_block` came before.
template <class Work> static void block_group(const AttendArgs& a, const Block& b, Tile& t, int first, int count) {
  const Span& s = *b.span;
  const size_t page = (size_t)b.page * kPage * a.dim;
  const uint16_t *keys = (const uint16_t*)s.base + page,
                 *values = (const uint16_t*)(s.base + slab_layout(s.format, s.capacity, a.dim).values) + page;
#if defined(THRIFTY_PAIRS)
  const auto codes = [&]<int B, int H>()
                         __attribute__((always_inline)) { rows_group<Work>(a, b, t, first, count, Codes<B, H>{}); };
  if (with_codes(s.format, codes)) return;
  if (b.interleaved)
    return rows_group<Work>(a, b, t, first, count,
                            PairNumbers<true>{(const uint16_t*)t.keys, (const uint16_t*)t.values});
  if (!b.keys32) return rows_group<Work>(a, b, t, first, count, PairNumbers<false>{keys, values});
#else
  if (!b.keys32) return rows_group<Work>(a, b, t, first, count, Numbers<uint16_t>{keys, values});
#endif
  rows_group<Work>(a, b, t, first, count, Numbers<float>{b.keys32, b.values32});
}

// The tile's queries in groups of kScoreRows, as the page's numbers are multiplied: fp32 [group][dim][rows of the
// group], or as bf16 pairs (round_queries). Codes take them row by row.
THRIFTY_INLINE void group_queries(Tile& t, QueryOrder order) {
  if (t.order == order) return;
  t.order = order;
  for (int first = 0; first < t.rows; first += kScoreRows) {
    const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
    const float* from = t.rows_q + (size_t)first * t.dim;
#if defined(THRIFTY_PAIRS)
    if (order == QueryOrder::pairs) {
      round_queries(from, count, t.dim, (uint32_t*)t.q + (size_t)first * (t.dim / 2));
      continue;
    }
#endif
    for (int r = 0; r < count; r++)
      for (int c = 0; c < t.size; c++) t.q[(size_t)first * t.dim + (size_t)c * count + r] = from[(size_t)r * t.dim + c];
  }
}

// Converts what is not read as it is stored: other formats, and bf16 pages that many rows read or whose rows end within
// a slice of 64.
THRIFTY_INLINE void prepare_block(Block& b, Tile& t) {
  const bool few = t.rows <= kScoreRows, whole = t.size == t.dim, bf16 = b.span->format == Format::bf16;
  if (few && !whole && !format_bits(b.span->format) && b.next) fetch_page(*b.next, b.next_page, t.size);
#if defined(THRIFTY_PAIRS)
  if (format_bits(b.span->format)) return;
  if (bf16) {
    group_queries(t, QueryOrder::pairs);
    if (few && whole) return;
    const size_t page = (size_t)b.page * kPage * t.size;
    interleave_page((const uint16_t*)b.span->base + page,
                    (const uint16_t*)(b.span->base + slab_layout(Format::bf16, b.span->capacity, t.size).values) + page,
                    t.keys_only ? 0 : b.slots, t.size, (uint16_t*)t.keys, (uint16_t*)t.values);
    b.interleaved = true;
    return;
  }
#endif
  group_queries(t, QueryOrder::channels);
  if (!bf16 || !few || !whole) convert(b, t);
}

}  // namespace thrifty::THRIFTY_ISA
