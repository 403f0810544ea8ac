// Rows of a GGUF file's types to and from the layouts of linears: a pure re-ordering of bits, on the shared pool.
#pragma once
#include <cstddef>
#include <string>

#include "types.hpp"

namespace thrifty {

struct FileRows {
  uint8_t* data;
  size_t stride;  // bytes from row to row
  int rows, columns;
};

// Arrays of a linear, for whole tiles: scales and minimums [tiles, groups, kLanes].
struct LinearArrays {
  uint8_t* codes;
  uint16_t *scales, *minimums;
};

struct FileType {
  const char* name;  // as GGUF calls it
  Layout layout;
  bool minimums;
  int columns, bytes;  // of a block of the file
  void (*repack)(const FileRows&, const LinearArrays&, int tile);
  void (*unpack)(const LinearArrays&, const FileRows&, int tile);
};
const FileType& file_type(const std::string& name);  // throws std::invalid_argument

// Lanes behind the last row become zero bytes.
void repack(const FileType& type, const FileRows& from, const LinearArrays& to);
void unpack(const FileType& type, const LinearArrays& from, const FileRows& to);

}  // namespace thrifty
