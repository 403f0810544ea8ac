// What linears hold beside codes and scales: tables of rows, vectors, and single weights of 16 bits on top.
#pragma once
#include "common.hpp"

namespace thrifty {

// A weight is (main[code] + rest[code]) * scale + offset, with a scale and an offset a column. Codes of a block: those
// of the main table, column by column, then those of the rest; in whole bytes first, then halves of bytes.
struct Vectors {
  const uint16_t* main = nullptr;    // fp16 [books][2^bits][length]
  const uint16_t* rest = nullptr;    // fp16 [books][2^rest_bits][length]; absent: null
  const uint16_t* scales = nullptr;  // fp16 [in]
  const uint16_t* offsets = nullptr;
  const uint8_t* books = nullptr;  // [in]: the book of each column; absent: the first
  int bits = 0, rest_bits = 0;     // 4, 8, 12 or 16; rest: or 0
};

// Bytes of the codes of a block of 16 rows x 32 columns.
THRIFTY_SHARED constexpr int vector_codes(int length) { return kBlockColumns * kLanes / length; }
THRIFTY_SHARED constexpr int vector_bytes(const Vectors& v, int length) {
  return vector_codes(length) * (v.bits + v.rest_bits) / 8;
}

// Weights of fp16 added to those that are stored: row r has values[starts[r]..starts[r + 1] - 1], columns rising.
struct Overlay {
  const int32_t* starts = nullptr;  // absent: null
  const uint16_t* columns = nullptr;
  const uint16_t* values = nullptr;
};

}  // namespace thrifty
