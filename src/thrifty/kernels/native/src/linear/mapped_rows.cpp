#include "linear/mapped_rows.hpp"

#include <unistd.h>

#include "linear/linear.hpp"

namespace thrifty {

namespace {

// `size` bytes at `offset` of a file; whether all came.
bool read_all(int descriptor, uint8_t* to, size_t size, size_t offset) {
  while (size > 0) {
    const ssize_t count = ::pread(descriptor, to, size, (off_t)offset);
    if (count <= 0) return false;
    to += count, offset += (size_t)count, size -= (size_t)count;
  }
  return true;
}

}  // namespace

bool MappedRows::row(const Linear& linear, int row, float* out, std::vector<uint8_t>& buffer) const {
  if (descriptor_ < 0) return false;
  const bool plain = traits(linear.layout).family == Family::plain;
  const size_t place = (size_t)row / (plain ? 1 : kLanes), codes = tile_bytes(linear) / (plain ? kLanes : 1);
  const size_t columns = (size_t)linear.blocks() * kBlockColumns;
  const size_t groups = two_levels(linear.layout) ? (size_t)linear.superblocks()
                        : linear.group            ? (columns + (size_t)linear.group - 1) / (size_t)linear.group
                                                  : 0;
  const size_t values = groups * kLanes;  // scales of a tile
  Linear tile = linear;
  buffer.resize(codes + values * (2 + 2 + 1 + 4));
  uint8_t* to = buffer.data();
  // The tile's part of one of the arrays, which then lies in the buffer.
  const auto fetch = [&](auto*& array, size_t bytes) {
    if (!array) return true;
    const uint8_t* from = (const uint8_t*)array + place * bytes;
    if (from < base_ || from + bytes > base_ + size_) return false;
    array = (std::remove_reference_t<decltype(array)>)to, to += bytes;
    return read_all(descriptor_, (uint8_t*)array, bytes, (size_t)(from - base_));
  };
  if (!fetch(tile.codes, codes) || !fetch(tile.table_scales, values * 4) || !fetch(tile.scales, values * 2) ||
      !fetch(tile.minimums, values * 2) || !fetch(tile.zeros, values))
    return false;
  linear_row(tile, plain ? 0 : row % kLanes, out);
  return true;
}

}  // namespace thrifty
