#include "linear/low_rank.hpp"

namespace thrifty {

void Lowered::grow(const Linear& w, int slots, int rows) {
  if (!w.low) return;
  stride_ = std::max(stride_, (size_t)w.low->down.tiles() * kLanes);
  panel_bytes_ = std::max(panel_bytes_, align64(panel_bytes(w.low->up, kPanel)));
  rows_ = std::max(rows_, ((size_t)rows + kPanel - 1) / kPanel * kPanel);
  slots_ = std::max(slots_, (size_t)slots);
  values_.resize(slots_ * rows_ * stride_);
  panels_.resize(slots_ * (rows_ / kPanel) * panel_bytes_);
}

void Lowered::raise(const Linear& w, int slot, int tile0, int tile1, int row0, int row1, float* y, size_t stride) {
  if (w.low) kernels().tiles(w.low->up, tile0, tile1, panels(slot), row0, row1, y, stride, true);
}

}  // namespace thrifty
