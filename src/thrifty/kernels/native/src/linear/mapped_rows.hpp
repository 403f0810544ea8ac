// Rows of a weight matrix that is mapped from a file, read from the file itself. A page of a mapping that is touched
// brings its whole folio into the process, up to 2 MB for one row; a read brings the row's tile.
#pragma once
#include <cstdint>
#include <vector>

#include "types.hpp"

namespace thrifty {

class MappedRows {
 public:
  MappedRows() = default;
  // descriptor: of the file that is mapped at `base`, its first `size` bytes; it must outlive this object.
  MappedRows(int descriptor, const uint8_t* base, size_t size) : descriptor_(descriptor), base_(base), size_(size) {}
  // As linear_row, where all of the row's tile lies in the file and could be read: whether that was so.
  bool row(const Linear& linear, int row, float* out, std::vector<uint8_t>& buffer) const;

 private:
  int descriptor_ = -1;
  const uint8_t* base_ = nullptr;
  size_t size_ = 0;
};

}  // namespace thrifty
