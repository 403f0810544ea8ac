// Scratch of an attention tile, and pages of any format as fp32. Included once per instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

// Two cache lines of what is needed next.
THRIFTY_INLINE void fetch_ahead(const uint8_t* ahead, int step) {
  if (!ahead) return;
  __builtin_prefetch(ahead + (size_t)step * 128), __builtin_prefetch(ahead + (size_t)step * 128 + 64);
}

constexpr float kLowest = -1e30f;
constexpr float kLog2e = 1.44269504088896341f;
constexpr int kTileRows = 96;  // rows * query heads per KV head of a prefill tile

struct Block {  // one page of one span
  const Span* span;
  int page, slots, first_slot;
  const Span* next;  // the page that is read after it, to be asked for early; may be null
  int next_page;
  const float *keys32, *values32;  // converted to fp32: [dim][64], [slots][dim]; null while not converted
  bool interleaved = false;        // a bf16 page lies in the tile's scratch as pairs of rows (attention_pairs.hpp)
};

// The arrays of one page of a quantised span; `dim` padded or not.
struct CodePage {
  const uint8_t *keys, *values;
  const uint16_t *key_params,
      *value_params;  // [scale, minimum][group of the page][dim], [scale, minimum][group of channels][kPage]
};
THRIFTY_INLINE CodePage code_page(const Span& s, int page, int dim) {
  const SlabLayout at = slab_layout(s.format, s.capacity, dim = (int)align64(dim));
  const size_t bytes = (size_t)page * dim * 8 * format_bits(s.format),
               params = (size_t)page * 2 * format_groups(s.format) * dim;
  return {s.base + bytes, s.base + at.values + bytes, (const uint16_t*)(s.base + at.key_params) + params,
          (const uint16_t*)(s.base + at.value_params) + params};
}

THRIFTY_INLINE V load_as_float(const float* p) { return load(p); }
THRIFTY_INLINE V load_as_float(const uint16_t* p) { return load_bf16(p); }

// Whether the page that is read next is worth asking for line by line. Where it lies behind this one, the processor
// follows the stream by itself, faster than with instructions in between.
THRIFTY_INLINE bool lies_apart(const Block& b, int dim) {
  if (!b.next || b.next == b.span) return false;
  return b.next->base != b.span->base + slab_layout(b.span->format, (size_t)b.span->capacity, (size_t)dim).bytes;
}

// Keys and values of the page behind a bf16 page, where that is one too and lies apart.
struct Ahead {
  const uint8_t *keys, *values;
};
THRIFTY_INLINE Ahead ahead_of(const Block& b, int dim) {
  if (!lies_apart(b, dim) || b.next->format != b.span->format) return {nullptr, nullptr};
  const size_t page = (size_t)b.next_page * kPage * dim * 2;
  return {b.next->base + page, b.next->base + slab_layout(b.next->format, b.next->capacity, dim).values + page};
}

// Has the addresses of the page behind the next one looked up, by one line of each of the system's pages: a stream
// stops at their borders, and looking up takes as long as reading. Pages of one head mostly lie side by side; where
// not, nothing comes of it.
THRIFTY_INLINE void fetch_addresses(const Block& b, int dim) {
  constexpr size_t kSystemPage = 4096;
  if (!b.next || b.next->capacity != kPage || b.next->format != b.span->format) return;
  const uint8_t* guess = b.next->base + (b.next->base - b.span->base);
  for (size_t i = 0; i < slab_layout(b.next->format, kPage, dim).bytes; i += kSystemPage)
    __builtin_prefetch(guess + i, 0, 2);
}

enum class QueryOrder { none, channels, pairs };

struct Tile {  // scratch of one worker
  int rows, first_row = 0;
  int size, dim;  // of a head; padded to a multiple of 64, the stride of rows, with zeros behind queries
  float *q, *rows_q, *scores, *chunk, *total, *keys, *values, *params;
  float *chunk_max, *chunk_sum, *total_max, *total_sum;
  int *low, *high;
  uint32_t*
      pairs;  // of kScoreRows rows, as bf16 pairs: queries times key scales, weights, or weights times value scales
  QueryOrder order;  // of q, which is made from rows_q
  bool chunk_used;
  bool keys_only = false;  // a page's values are not asked for
};

static size_t attend_scratch(int size, int group) {
  const size_t dim = align64(size);
  size_t rows = (size_t)(group > kTileRows ? group : kTileRows) + kScoreRows;
  return 64 * 14 + sizeof(float) * (rows * (4 * dim + 8) + kScoreRows * 2 * kPage + 2 * (size_t)kPage * dim + 8 * dim);
}
static int attend_rows(int group) { return group >= kTileRows ? 1 : kTileRows / group; }

static Tile make_tile(int rows, int size, uint8_t* scratch) {
  Tile t;
  const int dim = (int)align64(size);
  t.rows = rows, t.size = size, t.dim = dim, t.chunk_used = false, t.order = QueryOrder::none;
  size_t padded = (size_t)rows + kScoreRows;
  auto take = [&](size_t floats) {
    float* p = (float*)scratch;
    scratch += (floats * sizeof(float) + 63) / 64 * 64;
    return p;
  };
  t.keys = take((size_t)kPage * dim), t.values = take((size_t)kPage * dim), t.params = take(8 * (size_t)dim);
  t.scores = take(kScoreRows * kPage);
  t.pairs = (uint32_t*)take(kScoreRows * kPage);
  t.q = take(padded * dim), t.rows_q = take(padded * dim), t.chunk = take(padded * dim), t.total = take(padded * dim);
  t.chunk_max = take(padded), t.chunk_sum = take(padded), t.total_max = take(padded), t.total_sum = take(padded);
  t.low = (int*)take(padded), t.high = (int*)take(padded);
  return t;
}

// Rows of a 64-byte vector of codes; row e of its 16 lanes is read by unpack<B>(vector, e) (see formats/kv.py,
// pack_lanes).
constexpr int code_rows(int bits) { return 32 / bits; }
template <int B> constexpr float kMiddle = (float)((1 << B) - 1) / 2.0f;

// H groups of 64 numbers (format_groups): vector j of 16 of them belongs to group j * H / 4.
template <int B, int H> static void convert_codes(const Span& s, int page, int slots, int dim, Tile& t) {
  constexpr int rows = code_rows(B);
  const CodePage p = code_page(s, page, dim);
  for (int i = 0; i < 2 * H * dim; i += kLanes) store(t.params + i, load_half(p.key_params + i));
  const uint8_t* codes = p.keys;
  for (int c = 0; c < dim; c += rows)
    for (int j = 0; j < 4; j++, codes += 64)
      for (int e = 0; e < rows; e++)
        store(t.keys + (c + e) * kPage + j * kLanes, fma(unpack<B>(codes, e), set1(t.params[(j * H / 4) * dim + c + e]),
                                                         set1(t.params[(H + j * H / 4) * dim + c + e])));
  if (t.keys_only) return;
  const int groups = dim / 64 * H;
  codes = p.values;
  for (int i = 0; i < slots; i += rows)
    for (int j = 0; j < dim / kLanes; j++, codes += 64)
      for (int e = 0; e < rows && i + e < slots; e++) {
        const uint16_t* params = p.value_params + (j * H / 4) * kPage + i + e;
        store(t.values + (size_t)(i + e) * dim + j * kLanes,
              fma(unpack<B>(codes, e), set1(half_to_float(params[0])), set1(half_to_float(params[groups * kPage]))));
      }
}

// Up to 16 numbers of a longer row, missing lanes zero.
template <class T> THRIFTY_INLINE V load_some_as_float(const T* p, int count) {
  if (count >= kLanes) return load_as_float(p);
  T t[kLanes] = {};
  __builtin_memcpy(t, p, sizeof(T) * (size_t)count);
  return load_as_float(t);
}

// Rows of values -> fp32 rows of the tile's stride, zero behind a head's own numbers.
template <class T> static void convert_values(const T* values, int slots, Tile& t) {
  for (int i = 0; i < slots; i++)
    for (int c = 0; c < t.dim; c += kLanes)
      store(t.values + (size_t)i * t.dim + c,
            c < t.size ? load_some_as_float(values + (size_t)i * t.size + c, t.size - c) : zero());
}

static void convert_bf16(const Span& s, int page, int slots, Tile& t) {
  const uint16_t* keys = (const uint16_t*)s.base + (size_t)page * kPage * t.size;
  const uint16_t* values =
      (const uint16_t*)(s.base + slab_layout(s.format, s.capacity, t.size).values) + (size_t)page * kPage * t.size;
  for (int i = 0; i < kPage * t.size; i += kLanes) store(t.keys + i, load_bf16(keys + i));
  if (!t.keys_only) convert_values(values, slots, t);
}

static void convert(Block& b, Tile& t) {
  if (b.span->format == Format::f32) {
    const size_t at = slab_layout(Format::f32, b.span->capacity, t.size).values, page = (size_t)b.page * kPage * t.size;
    b.keys32 = (const float*)b.span->base + page, b.values32 = (const float*)(b.span->base + at) + page;
    if (t.size == t.dim) return;
    if (!t.keys_only) convert_values(b.values32, b.slots, t);
    b.values32 = t.values;
    return;
  }
  const auto codes = [&]<int B, int H>()
                         __attribute__((always_inline)) { convert_codes<B, H>(*b.span, b.page, b.slots, t.dim, t); };
  if (!with_codes(b.span->format, codes)) convert_bf16(*b.span, b.page, b.slots, t);
  b.keys32 = t.keys, b.values32 = t.values;
}

}  // namespace thrifty::THRIFTY_ISA
