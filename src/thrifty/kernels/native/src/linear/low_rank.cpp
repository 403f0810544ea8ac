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

}  // namespace thrifty
