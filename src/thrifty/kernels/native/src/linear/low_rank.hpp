// What a linear of low rank adds to its base's product, U (V x): V x first, for all rows, then U tile by tile.
#pragma once
#include <cstdint>
#include <vector>

#include "isa/isa.hpp"
#include "linear/linear.hpp"

namespace thrifty {

inline bool any_low_rank(const std::vector<const Linear*>& linears) {
  return std::any_of(linears.begin(), linears.end(), [](const Linear* w) { return w->low != nullptr; });
}

// V x of some linears, in fp32 and as their U read it; each linear has a slot. Work space that operations share.
class Lowered {
 public:
  // Room for `rows` rows of the linear, in slots 0..slots-1.
  void grow(const Linear& w, int slots, int rows);
  size_t bytes() const { return values_.size() * sizeof(float) + panels_.size(); }

  float* value(int slot, int row) { return values_.data() + ((size_t)slot * rows_ + (size_t)row) * stride_; }
  size_t stride() const { return stride_; }  // floats from a row's values to the next's
  // Panels of a slot; `panel`: how many times eight rows, of the widest linear, lie before them.
  uint8_t* panels(int slot, int panel = 0) {
    return panels_.data() + ((size_t)slot * (rows_ / kPanel) + (size_t)panel) * panel_bytes_;
  }

  // V x of rows 0..rows-1 of each linear that has a V, its slot its place in the list, by all workers; `of(V)` are the
  // rows as V reads them. Two barriers; nothing at all where no linear has a V.
  template <class F> void lower(const std::vector<const Linear*>& linears, int rows, Worker& w, F&& of);
  // y[rows row0..row1, lanes of tiles tile0..tile1] += U (V x) of a linear that was lowered in the slot; nothing for
  // one without U.
  void raise(const Linear& w, int slot, int tile0, int tile1, int row0, int row1, float* y, size_t stride);

 private:
  std::vector<float> values_;
  std::vector<uint8_t> panels_;
  size_t stride_ = 0, rows_ = 0, slots_ = 0, panel_bytes_ = 0;  // panel_bytes_: of eight rows of the widest
};

template <class F> void Lowered::lower(const std::vector<const Linear*>& linears, int rows, Worker& w, F&& of) {
  if (!any_low_rank(linears)) return;
  constexpr int kStep = 64;
  int task = 0;
  for (size_t slot = 0; slot < linears.size(); slot++) {
    if (!linears[slot]->low) continue;
    const Linear& down = linears[slot]->low->down;
    for (int row = 0; row < rows; row += kStep)
      for (int tile = 0; tile < down.tiles(); tile++)
        if (task++ % w.count == w.id)
          kernels().tiles(down, tile, tile + 1, of(down), row, std::min(row + kStep, rows),
                          value((int)slot, row) + tile * kLanes, stride_, false);
  }
  w.barrier();
  for (size_t slot = 0; slot < linears.size(); slot++)
    for (int i = w.begin(rows); linears[slot]->low && i < w.end(rows); i++)
      place_row(linears[slot]->low->up, value((int)slot, i), i, panels((int)slot));
  w.barrier();
}

}  // namespace thrifty
