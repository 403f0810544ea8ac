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
  const int code = plane(0, codes.low) | plane(codes.low, codes.high) << codes.low;
  return (codes.table ? kTable[code] : code) - codes.offset;
}

uint32_t word(const uint8_t* record, int vector, int lane) {
  uint32_t x;
  std::memcpy(&x, record + 64 * vector + 4 * lane, 4);
  return x;
}

struct SubScale {
  int scale = 0, minimum = 0;
};

// Number i of a record's sub-scales and sub-minimums.
SubScale sub_scale_at(Layout layout, const uint8_t* record, int lane, int i) {
  const auto nibble = [&](int vector) { return (int)(word(record, vector, lane) >> (4 * (i % 8)) & 15); };
  const auto six = [&](int vector, uint32_t high, int shift) { return nibble(vector) | (int)(high >> shift & 3) << 4; };
  switch (layout) {
    case Layout::q2_k:
      return {nibble(i / 8), nibble(2 + i / 8)};
    case Layout::q3_k:
      return {six(i / 8, word(record, 2, lane), 2 * i) - 32};
    case Layout::q4_k:
    case Layout::q5_k:
      return {six(0, word(record, 2, lane), 2 * i), six(1, word(record, 2, lane), 16 + 2 * i)};
    case Layout::q6_k:
      return {(int8_t)(uint8_t)(word(record, i / 4, lane) >> (8 * (i % 4)))};
    default: {
      uint16_t high;
      std::memcpy(&high, record + 64 + 2 * lane, 2);
      return {six(0, high, 2 * i) - 32};
    }
  }
}

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

void superblock_row(const Linear& w, size_t tile, int lane, float* out) {
  const Codes codes = codes_of(w.layout, false);
  const SubScales subs = sub_scales(w.layout);
  for (int k = 0; k < w.superblocks(); k++) {
    const size_t at = (tile * (size_t)w.superblocks() + (size_t)k) * kLanes + (size_t)lane;
    const uint8_t* record = w.codes + tile * tile_bytes(w) + (size_t)k * (size_t)record_bytes(w.layout);
    const float d = half_value(w.scales[at]), dmin = w.minimums ? half_value(w.minimums[at]) : 0.0f;
    for (int i = 0; i < subs.count(); i++) {
      const SubScale sub = sub_scale_at(w.layout, record, lane, i);
      const float scale = d * (float)sub.scale, minimum = dmin * (float)sub.minimum;
      for (int c = i * subs.columns; c < (i + 1) * subs.columns; c++, out++)
        *out = scale * (float)code_at(codes, record + subs.bytes + c / kBlockColumns * codes.bytes(), lane,
                                      c % kBlockColumns) -
               minimum;
    }
  }
}

}  // namespace

void linear_row(const Linear& w, int row, float* out) {
  const size_t tile = (size_t)row / kLanes, first = (size_t)row * (size_t)w.in;
  const int lane = row % kLanes;
  switch (w.layout) {
    case Layout::f32:
      std::memcpy(out, (const float*)w.codes + first, (size_t)w.in * sizeof(float));
      return;
    case Layout::f16:
      for (int c = 0; c < w.in; c++) out[c] = half_value(((const uint16_t*)w.codes)[first + (size_t)c]);
      return;
    case Layout::bf16:
      for (int c = 0; c < w.in; c++) {
        const size_t pair = tile * (((size_t)w.in + 1) / 2) + (size_t)c / 2;
        const uint32_t bits = (uint32_t)((const uint16_t*)w.codes)[(pair * kLanes + (size_t)lane) * 2 + (size_t)c % 2]
                              << 16;
        std::memcpy(out + c, &bits, 4);
      }
      return;
    case Layout::table4:
    case Layout::table8:
      return table_row(w, tile, lane, out);
    default:
      return two_levels(w.layout) ? superblock_row(w, tile, lane, out) : group_row(w, tile, lane, out);
  }
}

}  // namespace thrifty
