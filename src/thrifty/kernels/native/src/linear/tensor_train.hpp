// Products of linears that are trains of tensors (matrix product operators), contracted one tensor after the other.
//
// x[i_1 .. i_n] is the state before the first site. Site k sums over i_k and the bond before it, and leaves o_k and the
// bond behind it: [o_1 .. o_k, bond, i_k+1 .. i_n]. So it is a product of its weights, as any linear, with
// (o_1 .. o_k-1)(i_k+1 .. i_n) rows for each row of x. All sites but the last are multiplied by `contract`, for all
// rows; the last one tile by tile, where its linear's tiles are wanted.
#pragma once
#include <vector>

#include "isa/isa.hpp"
#include "linear/linear.hpp"

namespace thrifty {

TensorTrain make_train(const std::vector<TensorTrain::Site>& sites, int out, int in);  // throws std::invalid_argument

inline bool any_train(const std::vector<const Linear*>& linears) {
  return std::any_of(linears.begin(), linears.end(), [](const Linear* w) { return w->train != nullptr; });
}

// States of some linears between their sites; each linear has a slot. Work space that operations share.
class Contracted {
 public:
  // Room for `rows` rows of the linear, in slots 0..slots-1.
  void grow(const Linear& w, int slots, int rows);
  size_t bytes() const { return values_.size() * sizeof(float) + panels_.size(); }

  // All sites but the last of each linear that is a train, its slot its place in the list, by all workers; `of(w)` are
  // the plain rows 0..rows-1 of x. Two barriers a site; nothing at all where no linear is a train.
  template <class F> void contract(const std::vector<const Linear*>& linears, int rows, Worker& w, F&& of);

  // y[rows row0..row1, lanes of tiles tile0..tile1] = W x, or += it; of a train, which was contracted in the slot, by
  // its last site, else by the linear's own weights and `x`.
  void multiply(const Linear& w, int slot, int tile0, int tile1, const void* x, int row0, int row1, float* y,
                size_t stride, bool add);

 private:
  void place(const TensorTrain& t, int site, int slot, const float* x, int in, int rows, Worker& w);
  float* values(int slot) { return values_.data() + (size_t)slot * value_room_; }
  uint8_t* panels(int slot) { return panels_.data() + (size_t)slot * panel_room_; }

  std::vector<float> values_;    // of a slot: what its last site gave, [rows of the site][tiles of 16]
  std::vector<uint8_t> panels_;  // of a slot: what its next site reads
  size_t value_room_ = 0, panel_room_ = 0, slots_ = 0;
  int rows_ = 0;
};

// A row of the whole weight, in fp32: out[in].
void train_row(const Linear& w, int row, float* out);

// Rows of a site for each row of x.
int site_rows(const TensorTrain& t, int site);

template <class F> void Contracted::contract(const std::vector<const Linear*>& linears, int rows, Worker& w, F&& of) {
  if (!any_train(linears)) return;
  constexpr int kStep = 64;
  for (int site = 0; site < kMostSites; site++) {
    bool any = false;
    for (size_t slot = 0; slot < linears.size(); slot++) {
      const TensorTrain* t = linears[slot]->train;
      if (!t || site >= t->count) continue;
      const float* x = site == 0 ? (const float*)of(*linears[slot]) : nullptr;
      place(*t, site, (int)slot, x, linears[slot]->in, rows, w), any = true;
    }
    if (!any) return;
    w.barrier();
    int task = 0;
    for (size_t slot = 0; slot < linears.size(); slot++) {
      const TensorTrain* t = linears[slot]->train;
      if (!t || site + 1 >= t->count) continue;
      const Linear& weights = t->sites[site].weights;
      const int all = rows * site_rows(*t, site);
      const size_t stride = (size_t)weights.tiles() * kLanes;
      for (int row = 0; row < all; row += kStep)
        for (int tile = 0; tile < weights.tiles(); tile += 4)
          if (task++ % w.count == w.id)
            kernels().tiles(weights, tile, std::min(tile + 4, weights.tiles()), panels((int)slot), row,
                            std::min(row + kStep, all),
                            values((int)slot) + (size_t)row * stride + (size_t)tile * kLanes, stride, false);
    }
    w.barrier();
  }
}

}  // namespace thrifty
