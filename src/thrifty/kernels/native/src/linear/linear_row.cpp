// A row of a stored weight matrix in fp32.
#include <algorithm>
#include <cstring>

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

// What scales multiply at column c of a block.
int code_at(Codes codes, const uint8_t* block, int lane, int c) {
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

void pair_row(const Linear& w, size_t tile, int lane, float* out) {
  for (int c = 0; c < w.in; c++) {
    const size_t pair = tile * (((size_t)w.in + 1) / 2) + (size_t)c / 2;
    const uint32_t bits = (uint32_t)((const uint16_t*)w.codes)[(pair * kLanes + (size_t)lane) * 2 + (size_t)c % 2]
                          << 16;
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
      return pair_row;
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
  kReaders[(int)w.layout](w, (size_t)row / kLanes, row % kLanes, out);
}

}  // namespace thrifty
