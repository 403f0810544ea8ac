// A row of a stored weight matrix in fp32.
#include <algorithm>
#include <cstring>

#include "linear/tensor_train.hpp"
#include "linear/linear.hpp"

namespace thrifty {

namespace {

float half_value(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, body = h & 0x7fffu;
  if (body < 0x400u) return (sign ? -1.0f : 1.0f) * (float)body * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
  const uint32_t bits = sign | (body >= 0x7c00u ? 0x7f800000u | (body & 0x3ffu) << 13 : (body + 0x1c000u) << 13);
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// The place of column c of a row among the kept numbers of a block of which two of four are kept; -1: it is not kept.
int kept_place(const uint8_t* block, int lane, int c) {
  uint32_t mask;
  std::memcpy(&mask, block + 4 * lane, 4);
  const uint32_t place = kKeptPlaces[mask >> (c / 4 * 4) & 15] >> (8 * (c % 4)) & 255u;
  return place & 128u ? -1 : c / 4 * 2 + (int)place;
}

// What scales multiply at column c of a block.
int code_at(Codes codes, const uint8_t* block, int lane, int c) {
  if (codes.sparse) {
    const int place = kept_place(block, lane, c), u = place / 4;
    if (place < 0) return 0;
    const uint8_t* line = block + 64 * (1 + (codes.low == 8 ? u : u % 2));
    const int code = codes.low == 8 ? line[4 * lane + place % 4] : line[4 * lane + place % 4] >> (u / 2 * 4) & 15;
    return (code ^ codes.offset) - codes.offset;
  }
  const int v = c / 4, byte = 4 * lane + c % 4;
  const auto plane = [&](int from, int bits) {
    const uint8_t* p = block + 64 * from + byte;
    switch (bits) {
      case 8:
        return (int)p[64 * v];
      case 4:
        return p[64 * (v % 4)] >> (v / 4 * 4) & 15;
      case 2:
        return p[64 * (v / 4)] >> (2 * (v % 4)) & 3;
      case 1:
        return p[0] >> v & 1;
      default:
        return 0;
    }
  };
  const int code = (plane(0, codes.low) | plane(codes.low, codes.high) << codes.low) * codes.step();
  return (codes.table ? kTable[code] : code) - codes.offset;
}

// One lane's words of a record's sub-scales, as layouts read them.
struct LaneWords {
  const uint8_t* record;
  int lane, bytes;
  uint32_t word(int vector) const {
    if (64 * (vector + 1) > bytes) {  // a vector of halves
      uint16_t x;
      std::memcpy(&x, record + 64 * vector + 2 * lane, 2);
      return x;
    }
    uint32_t x;
    std::memcpy(&x, record + 64 * vector + 4 * lane, 4);
    return x;
  }
  int nibble(int vector, int shift) const { return (int)(word(vector) >> shift & 15); }
  int six(int low, int low_shift, int high, int high_shift) const {
    return nibble(low, low_shift) | (int)(word(high) >> high_shift & 3) << 4;
  }
  int signed_byte(int vector, int byte) const { return (int8_t)(uint8_t)(word(vector) >> (8 * byte)); }
  static int less_32(int x) { return x - 32; }
};

void group_row(const Linear& w, size_t tile, int lane, float* out) {
  const Codes codes = codes_of(w.layout, w.has_minimum());
  const uint8_t* blocks = w.codes + tile * tile_bytes(w);
  const int groups = (w.blocks() * kBlockColumns + w.group - 1) / w.group;
  for (int g = 0; g < groups; g++) {
    const size_t at = (tile * (size_t)groups + (size_t)g) * kLanes + (size_t)lane;
    const float scale = half_value(w.scales[at]), minimum = w.minimums ? half_value(w.minimums[at])
                                                            : w.zeros  ? w.zero_value(at, scale)
                                                                       : 0.0f;
    for (int c = g * w.group; c < std::min(w.in, (g + 1) * w.group); c++)
      out[c] =
          scale * (float)code_at(codes, blocks + c / kBlockColumns * codes.bytes(), lane, c % kBlockColumns) + minimum;
  }
}

void table_row(const Linear& w, size_t tile, int lane, float* out) {
  const Codes codes = codes_of(w.layout, false);
  const uint8_t* blocks = w.codes + tile * tile_bytes(w);
  const size_t groups = ((size_t)w.blocks() * kBlockColumns + (size_t)w.group - 1) / (size_t)w.group;
  for (int c = 0; c < w.in; c++)
    out[c] = w.table_scales[(tile * groups + (size_t)(c / w.group)) * kLanes + (size_t)lane] *
             w.table[code_at(codes, blocks + c / kBlockColumns * codes.bytes(), lane, c % kBlockColumns)];
}

// Byte 16 l + i of vector 4 h + k has column 16 h + i of row 4 l + k (linear/matmul_row_tables.hpp).
void row_table_row(const Linear& w, size_t tile, int lane, float* out) {
  const Codes codes = codes_of(w.layout, false);
  const uint8_t* blocks = w.codes + tile * tile_bytes(w);
  const size_t row = tile * kLanes + (size_t)lane;
  const int8_t* table = w.row_tables + (row << codes.bits());
  const float scale = half_value(w.scales[row]);
  for (int c = 0; c < w.in; c++) {
    const int own = c % kBlockColumns, column = own / 16 * 16 + lane % 4 * 4 + own % 4;
    const int code = code_at(codes, blocks + c / kBlockColumns * codes.bytes(), lane / 4 * 4 + own % 16 / 4, column);
    out[c] = scale * (float)table[code];
  }
}

// Code i of `count` as they are stored for a block (linear/lookups.hpp).
int vector_code(const uint8_t* p, int bits, int count, int i) {
  const auto half = [&](const uint8_t* from) { return i < count / 2 ? from[i] & 15 : from[i - count / 2] >> 4; };
  if (bits == 4) return half(p);
  if (bits == 8) return p[i];
  return p[i] | (bits == 12 ? half(p + count) : p[count + i]) << 8;
}

void vector_row(const Linear& w, size_t tile, int lane, float* out) {
  const Vectors& v = w.vectors;
  const int length = traits(w.layout).length, count = vector_codes(length), bytes = vector_bytes(v, length);
  const uint8_t* blocks = w.codes + tile * tile_bytes(w);
  for (int c = 0; c < w.in; c++) {
    const uint8_t* codes = blocks + c / kBlockColumns * bytes;
    const int place = c % kBlockColumns * (kLanes / length) + lane / length;
    const auto value = [&](const uint16_t* table, int bits, const uint8_t* from) {
      const size_t book = v.books ? v.books[c] : 0, code = (size_t)vector_code(from, bits, count, place);
      return half_value(table[((book << bits) + code) * (size_t)length + (size_t)(lane % length)]);
    };
    float sum = value(v.main, v.bits, codes);
    if (v.rest) sum += value(v.rest, v.rest_bits, codes + count * v.bits / 8);
    out[c] = sum * half_value(v.scales[c]) + half_value(v.offsets[c]);
  }
}

void planes_row(const Linear& w, size_t tile, int lane, float* out) {
  const int bits = traits(w.layout).codes.bits();
  const uint8_t* blocks = w.codes + tile * tile_bytes(w);
  const size_t groups = ((size_t)w.in + (size_t)w.group - 1) / (size_t)w.group;
  for (int c = 0; c < w.in; c++) {
    const uint8_t* block = blocks + (size_t)(c / kBlockColumns) * 64 * (size_t)bits + 4 * lane + c % kBlockColumns / 8;
    int number = 1 - (1 << bits);
    for (int i = 0; i < bits; i++) number += (block[64 * i] >> c % 8 & 1) << (i + 1);
    const size_t at = (tile * groups + (size_t)(c / w.group)) * kLanes + (size_t)lane;
    out[c] = half_value(w.scales[at]) * (float)number;
  }
}

void plain_row(const Linear& w, size_t tile, int lane, float* out) {
  const size_t first = (tile * kLanes + (size_t)lane) * (size_t)w.in;
  if (traits(w.layout).number == sizeof(float)) {
    std::memcpy(out, (const float*)w.codes + first, (size_t)w.in * sizeof(float));
    return;
  }
  for (int c = 0; c < w.in; c++) out[c] = half_value(((const uint16_t*)w.codes)[first + (size_t)c]);
}

// The bf16 number that a word is, or holds for one of two weights.
uint32_t pair_value(const Linear& w, uint32_t word) {
  const int member = traits(w.layout).member;
  if (!member) return word;
  if (!(word >> (14 - member) & 1)) return 0;
  return (word << (member - 1) & 0x8000u) | ((word & 0x0fffu) + (112u << 7));
}

void pair_row(const Linear& w, size_t tile, int lane, float* out) {
  for (int c = 0; c < w.in; c++) {
    const size_t pair = tile * (((size_t)w.in + 1) / 2) + (size_t)c / 2;
    const uint32_t bits = pair_value(w, ((const uint16_t*)w.codes)[(pair * kLanes + (size_t)lane) * 2 + (size_t)c % 2])
                          << 16;
    std::memcpy(out + c, &bits, 4);
  }
}

void sparse_pair_row(const Linear& w, size_t tile, int lane, float* out) {
  const uint8_t* first = w.codes + tile * tile_bytes(w);
  for (int c = 0; c < w.in; c++) {
    const uint8_t* block = first + (size_t)(c / kBlockColumns * traits(w.layout).codes.bytes());
    const int place = kept_place(block, lane, c % kBlockColumns);
    uint16_t number = 0;
    if (place >= 0) std::memcpy(&number, block + 64 * (1 + place / 2) + 4 * lane + 2 * (place % 2), 2);
    const uint32_t bits = (uint32_t)number << 16;
    std::memcpy(out + c, &bits, 4);
  }
}

template <Layout L> void superblock_row(const Linear& w, size_t tile, int lane, float* out) {
  constexpr Codes codes = codes_of(L, false);
  constexpr SubScales subs = sub_scales(L);
  for (int k = 0; k < w.superblocks(); k++) {
    const size_t at = (tile * (size_t)w.superblocks() + (size_t)k) * kLanes + (size_t)lane;
    const uint8_t* record = w.codes + tile * tile_bytes(w) + (size_t)k * (size_t)record_bytes(L);
    const LaneWords words{record, lane, subs.bytes};
    const float d = half_value(w.scales[at]), dmin = w.minimums ? half_value(w.minimums[at]) : 0.0f;
    for (int i = 0; i < subs.count(); i++) {
      const float scale = d * (float)LayoutOf<L>::scale(words, i);
      float minimum = dmin * 0.0f;
      if constexpr (subs.minimums) minimum = dmin * (float)LayoutOf<L>::minimum(words, i);
      for (int c = i * subs.columns; c < (i + 1) * subs.columns; c++, out++)
        *out = scale * (float)code_at(codes, record + subs.bytes + c / kBlockColumns * codes.bytes(), lane,
                                      c % kBlockColumns) -
               minimum;
    }
  }
}

using RowReader = void (*)(const Linear&, size_t tile, int lane, float* out);
template <Layout L> constexpr RowReader reader() {
  switch (traits(L).family) {
    case Family::pairs:
      return traits(L).codes.sparse ? sparse_pair_row : pair_row;
    case Family::row_tables:
      return row_table_row;
    case Family::vectors:
      return vector_row;
    case Family::table:
      return table_row;
    case Family::planes:
      return planes_row;
    case Family::groups:
      return group_row;
    case Family::superblocks:
      if constexpr (two_levels(L)) return superblock_row<L>;
      break;
    case Family::plain:
      break;
  }
  return plain_row;
}
#define THRIFTY_READER(name) reader<Layout::name>(),
constexpr RowReader kReaders[kLayouts] = {THRIFTY_LAYOUTS(THRIFTY_READER)};
#undef THRIFTY_READER

}  // namespace

void linear_row(const Linear& w, int row, float* out) {
  if (w.train) return train_row(w, row, out);
  kReaders[(int)w.layout](w, (size_t)row / kLanes, row % kLanes, out);
  const Overlay& o = w.overlay;
  if (o.starts)
    for (int32_t e = o.starts[row]; e < o.starts[row + 1]; e++) out[o.columns[e]] += half_value(o.values[e]);
  if (!w.low) return;
  std::vector<float> factors((size_t)w.low->up.in), line((size_t)w.in);
  std::vector<double> sums(out, out + w.in);
  linear_row(w.low->up, row, factors.data());
  for (int k = 0; k < w.low->up.in; k++) {
    linear_row(w.low->down, k, line.data());
    for (int c = 0; c < w.in; c++) sums[(size_t)c] += (double)factors[(size_t)k] * (double)line[(size_t)c];
  }
  for (int c = 0; c < w.in; c++) out[c] = (float)sums[(size_t)c];
}

}  // namespace thrifty
