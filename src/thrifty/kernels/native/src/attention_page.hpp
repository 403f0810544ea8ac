// Scratch of an attention tile, and pages of any format as fp32. Included once per instruction set.
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
  int rows, dim, first_row = 0;
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

}  // namespace thrifty::THRIFTY_ISA
