// Attention of a tile of rows over the spans of one KV head, block (page of 64 slots) after block with an online
// softmax. Included once per instruction set.
//
// Fixed order, so that a row's result depends on nothing but its own history: pages in view order; kChunkPages pages
// make a chunk (counted from the start of the view); a chunk yields (maximum, sum, values); chunks merge in order. A
// decode step runs chunks in parallel and merges afterwards, a prefill tile merges as it goes: same operations, same
// order.
#pragma once
#include "attention/attention_block.hpp"

namespace thrifty::THRIFTY_ISA {

// Queries of rows row0.. times the scale, row by row; scores are in units of log2 from here on.
static void scale_queries(const AttendArgs& a, int row0, Tile& t) {
  const V scale = set1(a.scale * kLog2e);
  for (int r = 0; r < t.rows; r++) {
    const float* q = a.q + ((size_t)(row0 + r / a.group) * a.heads + a.kv_head * a.group + r % a.group) * a.dim;
    for (int c = 0; c < a.dim; c += kLanes)
      store(t.rows_q + (size_t)r * t.dim + c, mul(load_some(q + c, a.dim - c), scale));
    for (int c = (a.dim + kLanes - 1) / kLanes * kLanes; c < t.dim; c += kLanes)
      store(t.rows_q + (size_t)r * t.dim + c, zero());
  }
}

static void start_chunk(Tile& t) {
  for (int r = 0; r < t.rows; r++) t.chunk_max[r] = kLowest, t.chunk_sum[r] = 0.0f;
  __builtin_memset(t.chunk, 0, sizeof(float) * (size_t)t.rows * t.dim);
  t.chunk_used = false;
}

// What up to 16 totals and chunks are multiplied with to be merged (log-sum-exp), and the new maxima and sums.
THRIFTY_INLINE void merge_factors(float* maximum, float* sum, const float* chunk_max, const float* chunk_sum, float* f,
                                  float* g) {
  const V before = load(maximum), other = load(chunk_max), top = max(other, before);
  const V u = power_of_two(sub(before, top)), v = power_of_two(sub(other, top));
  store(f, u), store(g, v), store(maximum, top);
  store(sum, add(mul(load(sum), u), mul(load(chunk_sum), v)));
}
THRIFTY_INLINE void merge_values(float* acc, const float* chunk, int dim, float f, float g) {
  for (int c = 0; c < dim; c += kLanes)
    store_some(acc + c, fma(load(chunk + c), set1(g), mul(load_some(acc + c, dim - c), set1(f))), dim - c);
}

static void limits(const AttendArgs& a, int row0, const Block& b, Tile& t) {
  t.first_row = row0;
  for (int r = 0, row = row0; r < t.rows; r += a.group, row++) {
    const int limit = a.slots - (a.n - 1 - row);
    int high = limit + (a.ahead ? a.ahead[row] : 0) - b.first_slot,
        low = a.window > 0 ? limit - a.window - b.first_slot : 0;
    high = high > b.slots ? b.slots : high, low = low > 0 ? low : 0;
    if (a.tree) tree_limits(a, row, b, low, high);
    for (int g = r; g < r + a.group; g++) t.low[g] = low, t.high[g] = high;
  }
  for (int r = 0; a.seen && r < t.rows; r++)
    if (!seen_slots(a, t, r, b)) t.low[r] = t.high[r] = 0;
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
  if (t.rows <= kScoreRows && !a.seen) fetch_addresses(b, t.size);
  prepare_block(b, t);
  for (int first = 0; first < t.rows; first += kScoreRows) {
    const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
    if (any_visible(t, first, count)) block_group<Attended>(a, b, t, first, count);
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

// The span of the page behind `page` of span i: its next, or the first of another.
THRIFTY_INLINE const Span* next_span(const AttendArgs& a, int i, int page) {
  if (page + 1 < a.spans[i].pages()) return &a.spans[i];
  return i + 1 < a.span_count ? &a.spans[i + 1] : a.after;
}

// Whether some row sees some of the blocks block0..block1-1.
static bool seen_by_any(const AttendArgs& a, int block0, int block1) {
  for (int row = 0; row < a.n * a.group; row++)
    for (int block = block0; block < block1; block++)
      if (a.seen[(size_t)row * a.seen_blocks + block]) return true;
  return false;
}

// Where rows select: the next page behind the block (of span i) that some row sees.
static void find_next_seen(const AttendArgs& a, int i, Block& b) {
  int page = b.page + 1;
  b.next = nullptr;
  for (; i < a.span_count; i++, page = 0)
    for (; page < a.spans[i].pages(); page++)
      if (seen_by_any(a, a.spans[i].first_page + page, a.spans[i].first_page + page + 1)) {
        b.next = &a.spans[i], b.next_page = page;
        return;
      }
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
      if (a.seen && !seen_by_any(a, s.first_page + page, s.first_page + page + 1)) continue;
      const int left = s.tokens - page * kPage;
      Block b{&s,
              page,
              left < kPage ? left : kPage,
              s.first_slot + page * kPage,
              next_span(a, i, page),
              page + 1 < s.pages() ? page + 1 : 0,
              nullptr,
              nullptr};
      if (a.seen) find_next_seen(a, i, b);
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
  for (int c = 0; c < a.dim; c += kLanes) store_some(out + c, mul(load_some(acc + c, a.dim - c), inverse), a.dim - c);
  if (a.finals)
    a.finals[((size_t)row * a.heads + head) * 2] = maximum, a.finals[((size_t)row * a.heads + head) * 2 + 1] = sum;
}

static void merge_tile(Tile& t) {
  for (int first = 0; first < t.rows; first += kLanes) {
    const int count = t.rows - first < kLanes ? t.rows - first : kLanes;
    float f[kLanes], g[kLanes], maximum[kLanes] = {}, sum[kLanes] = {}, chunk_max[kLanes] = {}, chunk_sum[kLanes] = {};
    for (int i = 0; i < count; i++)
      maximum[i] = t.total_max[first + i], sum[i] = t.total_sum[first + i], chunk_max[i] = t.chunk_max[first + i],
      chunk_sum[i] = t.chunk_sum[first + i];
    merge_factors(maximum, sum, chunk_max, chunk_sum, f, g);
    for (int i = 0, r = first; i < count; i++, r++) {
      if (t.chunk_sum[r] == 0.0f) continue;  // the row saw nothing of the chunk
      t.total_max[r] = maximum[i], t.total_sum[r] = sum[i];
      merge_values(t.total + (size_t)r * t.dim, t.chunk + (size_t)r * t.dim, t.dim, f[i], g[i]);
    }
  }
}

// Rows row0..row1-1 over all their pages.
static void attend_tile(const AttendArgs& a, int row0, int row1, uint8_t* scratch) {
  Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
  scale_queries(a, row0, t);
  start_chunk(t);
  for (int r = 0; r < t.rows; r++) t.total_max[r] = kLowest, t.total_sum[r] = 0.0f;
  __builtin_memset(t.total, 0, sizeof(float) * (size_t)t.rows * t.dim);
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
    write_row(a, row0 + r / a.group, a.kv_head * a.group + r % a.group, t.total_max[r], t.total_sum[r],
              t.total + (size_t)r * t.dim);
}

THRIFTY_INLINE float* partial(const AttendArgs& a, int row, int head, int chunk) {
  return a.partials + (((size_t)row * a.heads + head) * a.chunk_stride + (chunk - a.first_chunk)) *
                          (align64(a.dim) + kPartialHeader);
}

// All rows over one chunk; the result goes to the partials.
static void attend_chunk(const AttendArgs& a, int chunk, uint8_t* scratch) {
  const int step = attend_rows(a.group);
  int page0 = chunk * kChunkPages - a.base_pages, pages = page_count(a), page1 = page0 + kChunkPages;
  page0 = page0 > 0 ? page0 : 0, page1 = page1 < pages ? page1 : pages;
  if (a.seen && !seen_by_any(a, page0, page1)) {
    for (int r = 0; r < a.n * a.group; r++) partial(a, r / a.group, a.kv_head * a.group + r % a.group, chunk)[1] = 0.0f;
    return;
  }
  for (int row0 = 0; row0 < a.n; row0 += step) {
    const int row1 = row0 + step < a.n ? row0 + step : a.n;
    Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
    scale_queries(a, row0, t);
    start_chunk(t);
    each_block(a, page0, page1, [&](Block& b, int) __attribute__((always_inline)) { attend_block(a, row0, b, t); });
    for (int r = 0; r < t.rows; r++) {
      float* to = partial(a, row0 + r / a.group, a.kv_head * a.group + r % a.group, chunk);
      to[0] = t.chunk_max[r], to[1] = t.chunk_sum[r];
      __builtin_memcpy(to + kPartialHeader, t.chunk + (size_t)r * t.dim, sizeof(float) * t.dim);
    }
  }
}

// The chunks of one row and head -> its output. The first chunk's values are merged in place.
static void attend_merge(const AttendArgs& a, int row, int head) {
  float f[kLanes], g[kLanes], maximum[kLanes] = {kLowest}, sum[kLanes] = {}, chunk_max[kLanes] = {},
                              chunk_sum[kLanes] = {};
  float* acc = a.out + ((size_t)row * a.heads + head) * a.dim;
  for (int c = 0; c < a.dim; c++) acc[c] = 0.0f;
  for (int chunk = a.first_chunk; chunk < a.first_chunk + a.chunks; chunk++) {
    const float* p = partial(a, row, head, chunk);
    if (p[1] == 0.0f) continue;
    chunk_max[0] = p[0], chunk_sum[0] = p[1];
    merge_factors(maximum, sum, chunk_max, chunk_sum, f, g);
    merge_values(acc, p + kPartialHeader, a.dim, f[0], g[0]);
  }
  write_row(a, row, head, maximum[0], sum[0], acc);
}

// Four vectors of one row's scores -> its final probabilities.
THRIFTY_INLINE void final_probabilities(const AttendArgs& a, int row, int head, const V* x, float* s) {
  const float* final = a.finals + ((size_t)row * a.heads + head) * 2;
  const V inverse = set1(1.0f / final[1]);
  for (int j = 0; j < 4; j++) store(s + j * kLanes, mul(power_of_two(sub(x[j], set1(final[0]))), inverse));
}

// ... where `leave_scores` left them.
static void accumulate_left(const AttendArgs& a, const Block& b, Tile& t) {
  for (int r = 0; r < t.rows; r++) {
    const int low = t.low[r], high = t.high[r], row = t.first_row + r / a.group,
              head = a.kv_head * a.group + r % a.group;
    float *to = accumulated(a, b, t, r), s[kPage] = {};
    if (high <= low) continue;
    V x[4];
    if (low == 0 && high == kPage) {
      for (int j = 0; j < 4; j++) x[j] = load(to + j * kLanes);
      final_probabilities(a, row, head, x, to);
      continue;
    }
    for (int i = low; i < high; i++) s[i] = to[i];
    for (int j = 0; j < 4; j++) x[j] = load(s + j * kLanes);
    final_probabilities(a, row, head, x, s);
    for (int i = low; i < high; i++) to[i] = s[i];
  }
}

// ... or once more from the keys: rows that share a table are added to it in their order.
static void accumulate_again(const AttendArgs& a, Block& b, Tile& t) {
  prepare_block(b, t);
  for (int first = 0; first < t.rows; first += kScoreRows) {
    const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
    block_group<Scored>(a, b, t, first, count);
    for (int r = 0; r < count; r++) {
      const int low = t.low[first + r], high = t.high[first + r], row = t.first_row + (first + r) / a.group;
      if (high <= low) continue;
      float* s = t.scores + r * kPage;
      V x[4];
      adjust_scores(s, a, b, row, low, high, x);
      final_probabilities(a, row, a.kv_head * a.group + (first + r) % a.group, x, s);
      float* to = accumulated(a, b, t, first + r);
      for (int i = low; i < high; i++) to[i] += s[i];
    }
  }
}

// Second pass: the final probabilities of every row over one page, added to accumulate[head][slot].
static void attend_accumulate(const AttendArgs& a, int page, uint8_t* scratch) {
  const int step = attend_rows(a.group);
  for (int row0 = 0; row0 < a.n; row0 += step) {
    const int row1 = row0 + step < a.n ? row0 + step : a.n;
    Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
    t.keys_only = true;
    if (!a.accumulate_row) scale_queries(a, row0, t);
    each_block(a, page, page + 1, [&](Block& b, int) {
      limits(a, row0, b, t);
      if (a.accumulate_row) accumulate_left(a, b, t);
      else accumulate_again(a, b, t);
    });
  }
}

}  // namespace thrifty::THRIFTY_ISA
