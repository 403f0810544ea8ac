#include "plan/after_layer.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace thrifty {

void AfterLayer::check(int rows) const {
  for (int i = 0; tap_rows && i < tap_count; i++)
    if (tap_rows[i] < 0 || tap_rows[i] >= rows)
      throw std::invalid_argument("tapped row " + std::to_string(tap_rows[i]) + " is outside the step's " +
                                  std::to_string(rows) + " rows");
}

void AfterLayer::run(int layer, const std::vector<int>& sequence_of, float* hidden, size_t width, Worker& w) const {
  const int rows = (int)sequence_of.size();
  if (!residual.empty() && !residual[(size_t)layer].empty()) {
    const std::vector<const float*>& vectors = residual[(size_t)layer];
    for (int row = w.begin(rows); row < w.end(rows); row++) {
      const float* vector = vectors[(size_t)sequence_of[(size_t)row]];
      float* to = hidden + (size_t)row * width;
      for (size_t c = 0; vector && c < width; c++) to[c] += vector[c];
    }
    w.barrier();
  }
  if (taps.empty() || !taps[(size_t)layer]) return;
  const int count = tap_rows ? tap_count : rows;
  for (int i = w.begin(count); i < w.end(count); i++) {
    const float* from = hidden + (size_t)(tap_rows ? tap_rows[i] : i) * width;
    std::memcpy(taps[(size_t)layer] + (size_t)i * width, from, width * sizeof(float));
  }
  w.barrier();
}

}  // namespace thrifty
