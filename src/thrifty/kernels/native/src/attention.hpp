// Attention of a tile of rows over the spans of one KV head, block (page of 64 slots) after block with an online
// softmax. Included once per instruction set.
//
// Fixed order, so that a row's result depends on nothing but its own history: pages in view order; kChunkPages pages make
// a chunk (counted from the start of the view); a chunk yields (maximum, sum, values); chunks merge in order. A decode
// step runs chunks in parallel and merges afterwards, a prefill tile merges as it goes: same operations, same order.
#pragma once

namespace thrifty::THRIFTY_ISA {

constexpr float kLowest = -1e30f;
constexpr int kTileRows = 96;  // rows * query heads per KV head of a prefill tile

struct Block {  // one page of one span
  const Span* span;
  int page, slots, first_slot;
  const uint8_t* next;             // the keys of the page behind it, to be fetched early; may be null
  const float *keys32, *values32;  // converted to fp32: [dim][64], [slots][dim]; null while not converted
};

struct Tile {  // scratch of one worker
  int rows, dim;
  float *q, *scores, *chunk, *total, *keys, *values, *params;
  float *chunk_max, *chunk_sum, *total_max, *total_sum;
  int *low, *high;
  bool chunk_used;
};

static size_t attend_scratch(int dim, int group) {
  size_t rows = (size_t)(group > kTileRows ? group : kTileRows) + kScoreRows;
  return 64 * 12 + sizeof(float) * (rows * (3 * (size_t)dim + 8) + kScoreRows * kPage + 2 * (size_t)kPage * dim + 4 * (size_t)dim);
}
static int attend_rows(int group) { return group >= kTileRows ? 1 : kTileRows / group; }

static Tile make_tile(int rows, int dim, uint8_t* scratch) {
  Tile t;
  t.rows = rows, t.dim = dim, t.chunk_used = false;
  size_t padded = (size_t)rows + kScoreRows;
  auto take = [&](size_t floats) {
    float* p = (float*)scratch;
    scratch += (floats * sizeof(float) + 63) / 64 * 64;
    return p;
  };
  t.keys = take((size_t)kPage * dim), t.values = take((size_t)kPage * dim), t.params = take(4 * (size_t)dim);
  t.scores = take(kScoreRows * kPage);
  t.q = take(padded * dim), t.chunk = take(padded * dim), t.total = take(padded * dim);
  t.chunk_max = take(padded), t.chunk_sum = take(padded), t.total_max = take(padded), t.total_sum = take(padded);
  t.low = (int*)take(padded), t.high = (int*)take(padded);
  return t;
}

// ---- one page in fp32 -------------------------------------------------------------------------------------------

template <int B> static void convert_codes(const Span& s, int page, int slots, int dim, Tile& t) {
  const SlabLayout at = slab_layout(s.format, s.capacity, dim);
  const uint8_t* keys = s.base + (size_t)page * dim * 8 * B;
  const uint16_t* params = (const uint16_t*)(s.base + at.key_params) + (size_t)page * 4 * dim;
  for (int i = 0; i < 4 * dim; i += kLanes) store(t.params + i, load_half(params + i));
  for (int c = 0; c < dim; c++)
    for (int j = 0; j < 4; j++)
      store(t.keys + c * kPage + j * kLanes,
            fma(unpack<B>(keys + (size_t)c * 8 * B, j), set1(t.params[(j / 2) * dim + c]), set1(t.params[(2 + j / 2) * dim + c])));
  const int slices = dim / 64, groups = dim / 32;
  for (int i = 0; i < slots; i++) {
    const size_t token = (size_t)page * kPage + i;
    const uint8_t* values = s.base + at.values + token * slices * 8 * B;
    const uint16_t* p = (const uint16_t*)(s.base + at.value_params) + token * 2 * groups;
    for (int g = 0; g < groups; g++) {
      const V scale = set1(half_to_float(p[g])), minimum = set1(half_to_float(p[groups + g]));
      for (int j = 2 * (g % 2); j < 2 * (g % 2) + 2; j++)
        store(t.values + (size_t)i * dim + (g / 2) * 64 + j * kLanes, fma(unpack<B>(values + (g / 2) * 8 * B, j), scale, minimum));
    }
  }
}

static void convert_bf16(const Span& s, int page, int slots, int dim, Tile& t) {
  const uint16_t* keys = (const uint16_t*)s.base + (size_t)page * kPage * dim;
  const uint16_t* values = (const uint16_t*)(s.base + slab_layout(s.format, s.capacity, dim).values) + (size_t)page * kPage * dim;
  for (int i = 0; i < kPage * dim; i += kLanes) store(t.keys + i, load_bf16(keys + i));
  for (int i = 0; i < slots * dim; i += kLanes) store(t.values + i, load_bf16(values + i));
}

static void convert(Block& b, Tile& t) {
  switch (b.span->format) {
    case Format::f32: {
      const size_t at = slab_layout(Format::f32, b.span->capacity, t.dim).values, page = (size_t)b.page * kPage * t.dim;
      b.keys32 = (const float*)b.span->base + page, b.values32 = (const float*)(b.span->base + at) + page;
      return;
    }
    case Format::bf16: convert_bf16(*b.span, b.page, b.slots, t.dim, t); break;
    case Format::int8: convert_codes<8>(*b.span, b.page, b.slots, t.dim, t); break;
    case Format::int4: convert_codes<4>(*b.span, b.page, b.slots, t.dim, t); break;
    case Format::int2: convert_codes<2>(*b.span, b.page, b.slots, t.dim, t); break;
  }
  b.keys32 = t.keys, b.values32 = t.values;
}

THRIFTY_INLINE V load_as_float(const float* p) { return load(p); }
THRIFTY_INLINE V load_as_float(const uint16_t* p) { return load_bf16(p); }

// ---- scores, softmax, values of R rows over one page ------------------------------------------------------------

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

// Soft cap, bias and mask of one row's scores.
THRIFTY_INLINE void adjust_scores(float* s, const AttendArgs& a, const Block& b, int low, int high, V* x) {
  const float* bias = b.span->bias ? b.span->bias + (size_t)b.page * kPage : nullptr;
  for (int j = 0; j < 4; j++) {
    x[j] = load(s + j * kLanes);
    if (a.softcap > 0.0f) x[j] = mul(set1(a.softcap), hyperbolic_tangent(div(x[j], set1(a.softcap))));
    if (bias) x[j] = add(x[j], load_some(bias + j * kLanes, b.slots - j * kLanes));
    if (low > j * kLanes || high < (j + 1) * kLanes) x[j] = keep(x[j], low - j * kLanes, high - j * kLanes, set1(kLowest));
  }
}

// Scores of R rows -> probabilities relative to each row's new maximum; fade: what shrinks the row's earlier values.
template <int R> THRIFTY_INLINE void soften(float* s, const AttendArgs& a, const Block& b, Tile& t, int first, float* fade) {
  const bool plain = a.softcap <= 0.0f && !b.span->bias;
  float top[kLanes] = {}, before[kLanes] = {};
  for (int r = 0; r < R; r++) {
    const int low = t.low[first + r], high = t.high[first + r];
    V x[4];
    if (plain && low == 0 && high == kPage) {
      for (int j = 0; j < 4; j++) x[j] = load(s + r * kPage + j * kLanes);
    } else {
      adjust_scores(s + r * kPage, a, b, low, high, x);
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

// ---- a tile over its pages --------------------------------------------------------------------------------------

// Queries of rows row0.. times the scale, grouped by kScoreRows: [group][dim][rows of the group].
static void pack_queries(const AttendArgs& a, int row0, Tile& t) {
  for (int first = 0; first < t.rows; first += kScoreRows) {
    const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
    for (int r = 0; r < count; r++) {
      const int row = row0 + (first + r) / a.group, head = a.kv_head * a.group + (first + r) % a.group;
      const float* q = a.q + ((size_t)row * a.heads + head) * a.dim;
      for (int c = 0; c < a.dim; c++) t.q[(size_t)first * a.dim + (size_t)c * count + r] = q[c] * a.scale;
    }
  }
}

static void start_chunk(Tile& t) {
  for (int r = 0; r < t.rows; r++) t.chunk_max[r] = kLowest, t.chunk_sum[r] = 0.0f;
  __builtin_memset(t.chunk, 0, sizeof(float) * (size_t)t.rows * t.dim);
  t.chunk_used = false;
}

// total <- total merged with one chunk (log-sum-exp).
static void merge(float& maximum, float& sum, float* acc, float chunk_max, float chunk_sum, const float* chunk, int dim) {
  if (chunk_sum == 0.0f) return;
  const float top = chunk_max > maximum ? chunk_max : maximum;
  float f[kLanes], g[kLanes];
  store(f, exponential_bounded(set1(maximum - top))), store(g, exponential_bounded(set1(chunk_max - top)));
  for (int c = 0; c < dim; c += kLanes) store(acc + c, fma(load(chunk + c), set1(g[0]), mul(load(acc + c), set1(f[0]))));
  sum = sum * f[0] + chunk_sum * g[0];
  maximum = top;
}

static void limits(const AttendArgs& a, int row0, const Block& b, Tile& t) {
  for (int r = 0; r < t.rows; r++) {
    const int limit = a.slots - (a.n - 1 - (row0 + r / a.group));
    const int high = limit - b.first_slot, low = a.window > 0 ? limit - a.window - b.first_slot : 0;
    t.high[r] = high > b.slots ? b.slots : high, t.low[r] = low > 0 ? low : 0;
  }
}

THRIFTY_INLINE bool any_visible(const Tile& t, int first, int count) {
  for (int r = first; r < first + count; r++)
    if (t.high[r] > t.low[r]) return true;
  return false;
}

static void attend_block(const AttendArgs& a, int row0, Block& b, Tile& t) {
  limits(a, row0, b, t);
  if (!any_visible(t, 0, t.rows)) return;
  t.chunk_used = true;
  const bool direct = b.span->format == Format::bf16 && t.rows <= kScoreRows;
  if (!direct) convert(b, t);
  for (int first = 0; first < t.rows; first += kScoreRows) {
    const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
    if (!any_visible(t, first, count)) continue;
    if (!direct) {
      block_group(a, b, t, first, count, b.keys32, b.values32);
      continue;
    }
    const size_t page = (size_t)b.page * kPage * a.dim;
    block_group(a, b, t, first, count, (const uint16_t*)b.span->base + page,
                (const uint16_t*)(b.span->base + slab_layout(Format::bf16, b.span->capacity, a.dim).values) + page);
  }
}

// The span that holds page `page` of the view.
static int span_of_page(const AttendArgs& a, int page) {
  int low = 0, high = a.span_count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.spans[middle].first_page <= page) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Where the keys of the page behind `page` of span i lie, if it stores them in the same format.
THRIFTY_INLINE const uint8_t* next_page(const AttendArgs& a, int i, int page) {
  const Span& s = a.spans[i];
  if (page + 1 < s.pages()) return s.base + (size_t)(page + 1) * kPage * a.dim * (s.format == Format::f32 ? 4 : 2);
  return i + 1 < a.span_count && a.spans[i + 1].format == s.format ? a.spans[i + 1].base : nullptr;
}

// Calls visit(block) for the pages page0..page1-1 of the view (pages counted inside the view, without base_pages).
template <class F> THRIFTY_INLINE void each_block(const AttendArgs& a, int page0, int page1, F&& visit) {
  if (a.span_count == 0 || page0 >= page1) return;
  for (int i = span_of_page(a, page0); i < a.span_count; i++) {
    const Span& s = a.spans[i];
    if (s.first_page >= page1) return;
    int page = page0 - s.first_page > 0 ? page0 - s.first_page : 0;
    const int end = page1 - s.first_page < s.pages() ? page1 - s.first_page : s.pages();
    for (; page < end; page++) {
      const int left = s.tokens - page * kPage;
      Block b{&s, page, left < kPage ? left : kPage, s.first_slot + page * kPage, next_page(a, i, page), nullptr, nullptr};
      visit(b, s.first_page + page);
    }
  }
}

static int page_count(const AttendArgs& a) {
  return a.span_count ? a.spans[a.span_count - 1].first_page + a.spans[a.span_count - 1].pages() : 0;
}

static void write_row(const AttendArgs& a, int row, int head, float maximum, float sum, const float* acc) {
  float* out = a.out + ((size_t)row * a.heads + head) * a.dim;
  const V inverse = set1(sum > 0.0f ? 1.0f / sum : 0.0f);
  for (int c = 0; c < a.dim; c += kLanes) store(out + c, mul(load(acc + c), inverse));
  if (a.finals) a.finals[((size_t)row * a.heads + head) * 2] = maximum, a.finals[((size_t)row * a.heads + head) * 2 + 1] = sum;
}

static void merge_tile(Tile& t) {
  for (int r = 0; r < t.rows; r++)
    merge(t.total_max[r], t.total_sum[r], t.total + (size_t)r * t.dim, t.chunk_max[r], t.chunk_sum[r], t.chunk + (size_t)r * t.dim, t.dim);
}

// Rows row0..row1-1 over all their pages.
static void attend_tile(const AttendArgs& a, int row0, int row1, uint8_t* scratch) {
  Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
  pack_queries(a, row0, t);
  start_chunk(t);
  for (int r = 0; r < t.rows; r++) t.total_max[r] = kLowest, t.total_sum[r] = 0.0f;
  __builtin_memset(t.total, 0, sizeof(float) * (size_t)t.rows * a.dim);
  int chunk = -1;
  const int start = a.first_chunk * kChunkPages - a.base_pages;
  each_block(a, start > 0 ? start : 0, page_count(a), [&](Block& b, int page) __attribute__((always_inline)) {
    if (const int c = (page + a.base_pages) / kChunkPages; c != chunk) {
      if (t.chunk_used) merge_tile(t), start_chunk(t);
      chunk = c;
    }
    attend_block(a, row0, b, t);
  });
  if (t.chunk_used) merge_tile(t);
  for (int r = 0; r < t.rows; r++)
    write_row(a, row0 + r / a.group, a.kv_head * a.group + r % a.group, t.total_max[r], t.total_sum[r], t.total + (size_t)r * a.dim);
}

THRIFTY_INLINE float* partial(const AttendArgs& a, int row, int head, int chunk) {
  return a.partials + (((size_t)row * a.heads + head) * a.chunk_stride + (chunk - a.first_chunk)) * (a.dim + kPartialHeader);
}

// All rows over one chunk; the result goes to the partials.
static void attend_chunk(const AttendArgs& a, int chunk, uint8_t* scratch) {
  const int step = attend_rows(a.group);
  int page0 = chunk * kChunkPages - a.base_pages, pages = page_count(a), page1 = page0 + kChunkPages;
  page0 = page0 > 0 ? page0 : 0, page1 = page1 < pages ? page1 : pages;
  for (int row0 = 0; row0 < a.n; row0 += step) {
    const int row1 = row0 + step < a.n ? row0 + step : a.n;
    Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
    pack_queries(a, row0, t);
    start_chunk(t);
    each_block(a, page0, page1, [&](Block& b, int) __attribute__((always_inline)) { attend_block(a, row0, b, t); });
    for (int r = 0; r < t.rows; r++) {
      float* to = partial(a, row0 + r / a.group, a.kv_head * a.group + r % a.group, chunk);
      to[0] = t.chunk_max[r], to[1] = t.chunk_sum[r];
      __builtin_memcpy(to + kPartialHeader, t.chunk + (size_t)r * a.dim, sizeof(float) * a.dim);
    }
  }
}

// The chunks of one row and head -> its output. The first chunk's values are merged in place.
static void attend_merge(const AttendArgs& a, int row, int head) {
  float maximum = kLowest, sum = 0.0f;
  float* acc = a.out + ((size_t)row * a.heads + head) * a.dim;
  for (int c = 0; c < a.dim; c += kLanes) store(acc + c, zero());
  for (int chunk = a.first_chunk; chunk < a.first_chunk + a.chunks; chunk++) {
    const float* p = partial(a, row, head, chunk);
    merge(maximum, sum, acc, p[0], p[1], p + kPartialHeader, a.dim);
  }
  write_row(a, row, head, maximum, sum, acc);
}

// Second pass: the final probabilities of every row over one page, added to accumulate[head][slot] in row order.
static void attend_accumulate(const AttendArgs& a, int page, uint8_t* scratch) {
  const int step = attend_rows(a.group);
  for (int row0 = 0; row0 < a.n; row0 += step) {
    const int row1 = row0 + step < a.n ? row0 + step : a.n;
    Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
    pack_queries(a, row0, t);
    each_block(a, page, page + 1, [&](Block& b, int) {
      limits(a, row0, b, t);
      convert(b, t);
      for (int first = 0; first < t.rows; first += kScoreRows) {
        const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
        for (int r = 0; r < count; r++) {
          if (t.high[first + r] <= t.low[first + r]) continue;
          float s[kPage] = {};
          for (int c = 0; c < a.dim; c++) {
            const V w = set1(t.q[(size_t)first * a.dim + (size_t)c * count + r]);
            for (int j = 0; j < 4; j++) store(s + j * kLanes, fma(w, load(b.keys32 + c * kPage + j * kLanes), load(s + j * kLanes)));
          }
          V x[4];
          adjust_scores(s, a, b, t.low[first + r], t.high[first + r], x);
          const int row = row0 + (first + r) / a.group, head = a.kv_head * a.group + (first + r) % a.group;
          const float* final = a.finals + ((size_t)row * a.heads + head) * 2;
          const V inverse = set1(1.0f / final[1]);
          for (int j = 0; j < 4; j++) store(s + j * kLanes, mul(exponential_bounded(sub(x[j], set1(final[0]))), inverse));
          float* to = a.accumulate + (size_t)head * a.accumulate_stride + b.first_slot;
          for (int i = t.low[first + r]; i < t.high[first + r]; i++) to[i] += s[i];
        }
      }
    });
  }
}

}  // namespace thrifty::THRIFTY_ISA
