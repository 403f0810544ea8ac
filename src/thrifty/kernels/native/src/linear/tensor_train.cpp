#include "linear/tensor_train.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int whole_panels(int rows) { return (rows + kPanel - 1) / kPanel * kPanel; }

int columns_behind(const TensorTrain& t, int site) {
  int count = 1;
  for (int k = site + 1; k < t.count; k++) count *= t.sites[k].in;
  return count;
}

int rows_before(const TensorTrain& t, int site) {
  int count = 1;
  for (int k = 0; k < site; k++) count *= t.sites[k].out;
  return count;
}

// Panels of the last site lie by its rows for one row of x, so that each tile of the whole finds its own.
size_t last_panel(const TensorTrain& t, int rows) {
  return panel_bytes(t.sites[t.count - 1].weights, whole_panels(rows));
}

}  // namespace

int site_rows(const TensorTrain& t, int site) { return rows_before(t, site) * columns_behind(t, site); }

TensorTrain make_train(const std::vector<TensorTrain::Site>& sites, int out, int in) {
  if (sites.size() < 2 || sites.size() > (size_t)kMostSites)
    refuse("a train of tensors has 2 to " + std::to_string(kMostSites) + " sites, not " + std::to_string(sites.size()));
  TensorTrain t;
  int64_t outs = 1, ins = 1;
  int bond = 1;
  for (const TensorTrain::Site& given : sites) {
    TensorTrain::Site& site = t.sites[t.count++] = given;
    const Linear& w = site.weights;
    if (w.bias || w.low || w.train || w.overlay.starts || !w.codes)
      refuse("a site of a train of tensors has neither bias, overlay, low rank nor sites of its own");
    if (site.out < 1 || site.in < 1 || w.out % site.out || w.in != (int64_t)site.in * bond)
      refuse("site " + std::to_string(t.count) + " [" + std::to_string(w.out) + ", " + std::to_string(w.in) +
             "] does not fit " + std::to_string(site.out) + " rows, and " + std::to_string(site.in) +
             " columns times a bond of " + std::to_string(bond));
    site.bond = bond = w.out / site.out;
    outs *= site.out, ins *= site.in;
    if (outs > out || ins > in) break;
  }
  if (outs != out || ins != in || bond != 1 || t.count != (int)sites.size())
    refuse("the sites are those of a linear [" + std::to_string(outs) + ", " + std::to_string(ins) +
           "] with a last bond of " + std::to_string(bond) + ", not of one [" + std::to_string(out) + ", " +
           std::to_string(in) + "] and 1");
  const int last = t.sites[t.count - 1].out;
  if (last != out && last % kLanes)
    refuse("the last site gives " + std::to_string(last) + " rows; it must give all, or a multiple of " +
           std::to_string(kLanes));
  return t;
}

void train_row(const Linear& w, int row, float* out) {
  const TensorTrain& t = *w.train;
  std::vector<double> made{1.0}, next;  // [columns so far][bond]
  int rows = w.out, bond = 1;
  for (int k = 0; k < t.count; k++) {
    const TensorTrain::Site& site = t.sites[k];
    rows /= site.out;
    const int own = row / rows % site.out;
    std::vector<float> line((size_t)site.weights.in);
    const size_t before = made.size() / (size_t)bond, wide = (size_t)site.in * (size_t)site.bond;
    next.assign(before * wide, 0.0);
    for (int c = 0; c < site.bond; c++) {
      linear_row(site.weights, own * site.bond + c, line.data());
      for (size_t i = 0; i < before; i++)
        for (int j = 0; j < site.in; j++) {
          double& sum = next[i * wide + (size_t)(j * site.bond + c)];
          for (int b = 0; b < bond; b++)
            sum += made[i * (size_t)bond + (size_t)b] * (double)line[(size_t)(j * bond + b)];
        }
    }
    made.swap(next), bond = site.bond;
  }
  for (int c = 0; c < w.in; c++) out[c] = (float)made[(size_t)c];
}

void Contracted::grow(const Linear& w, int slots, int rows) {
  if (!w.train) return;
  const TensorTrain& t = *w.train;
  rows_ = std::max(rows_, whole_panels(rows));
  for (int k = 0; k + 1 < t.count; k++) {
    const size_t own = (size_t)rows_ * (size_t)site_rows(t, k);
    if (own > INT32_MAX) refuse("a plan of " + std::to_string(rows) + " rows is too long for a train of tensors");
    value_room_ = std::max(value_room_, own * (size_t)t.sites[k].weights.tiles() * kLanes);
    panel_room_ = std::max(panel_room_, align64(panel_bytes(t.sites[k].weights, (int)own)));
  }
  panel_room_ = std::max(panel_room_, align64((size_t)site_rows(t, t.count - 1) * last_panel(t, rows_)));
  slots_ = std::max(slots_, (size_t)slots);
  values_.resize(slots_ * value_room_);
  panels_.resize(slots_ * panel_room_);
}

// What a site reads, gathered from x, or from what the site before it gave.
void Contracted::place(const TensorTrain& t, int site, int slot, const float* x, int in, int rows, Worker& w) {
  const Linear& weights = t.sites[site].weights;
  const bool last = site + 1 == t.count;
  const int own = site_rows(t, site), behind = columns_behind(t, site), columns = t.sites[site].in;
  const int bond = site ? t.sites[site - 1].bond : 1, outs = site ? t.sites[site - 1].out : 1;
  const size_t stride = site ? (size_t)t.sites[site - 1].weights.tiles() * kLanes : 0;
  const int before = site ? site_rows(t, site - 1) : 0;
  std::vector<float> line((size_t)weights.in);
  for (int i = w.begin(rows * own); i < w.end(rows * own); i++) {
    const int row = i / own, q = i % own, prefix = q / behind, suffix = q % behind;
    for (int c = 0; c < columns; c++) {
      if (site == 0) {
        line[(size_t)c] = x[(size_t)row * (size_t)in + (size_t)c * (size_t)behind + (size_t)suffix];
        continue;
      }
      const int from = prefix / outs * columns * behind + c * behind + suffix;
      const float* value = values(slot) + ((size_t)row * (size_t)before + (size_t)from) * stride +
                           (size_t)(prefix % outs) * (size_t)bond;
      std::copy(value, value + bond, line.begin() + (ptrdiff_t)c * bond);
    }
    if (last) place_row(weights, line.data(), row, panels(slot) + (size_t)q * last_panel(t, rows_));
    else place_row(weights, line.data(), i, panels(slot));
  }
}

void Contracted::multiply(const Linear& w, int slot, int tile0, int tile1, const void* x, int row0, int row1, float* y,
                          size_t stride, bool add) {
  if (!w.train) return kernels().tiles(w, tile0, tile1, x, row0, row1, y, stride, add);
  const TensorTrain& t = *w.train;
  const Linear& last = t.sites[t.count - 1].weights;
  for (int tile = tile0; tile < tile1;) {
    const int part = tile / last.tiles(), start = part * last.tiles(), end = std::min(tile1, start + last.tiles());
    float* to = y + (size_t)(tile - tile0) * kLanes;
    kernels().tiles(last, tile - start, end - start, panels(slot) + (size_t)part * last_panel(t, rows_), row0, row1, to,
                    stride, add);
    tile = end;
  }
  if (!w.bias) return;
  const int first = tile0 * kLanes, count = std::min(tile1 * kLanes, w.out) - first;
  for (int row = row0; row < row1; row++) kernels().add(y + (size_t)(row - row0) * stride, w.bias + first, count);
}

}  // namespace thrifty
