// What a step may do behind its layers: add vectors to the hidden state, and copy rows of it out.
#pragma once
#include <cstdint>
#include <vector>

#include "pool.hpp"

namespace thrifty {

struct AfterLayer {
  std::vector<std::vector<const float*>> residual;  // [layer][sequence]: [hidden size] or null; empty: nothing is added
  std::vector<float*> taps;                         // [layer]: [tapped rows, hidden size] or null; empty: none
  const int32_t* tap_rows = nullptr;                // [tap_count]; null: every row
  int tap_count = 0;

  bool empty() const { return residual.empty() && taps.empty(); }
  void check(int rows) const;  // throws std::invalid_argument
  // All workers call it, behind a barrier, with the state [sequence_of.size(), width] behind a layer. The taps see what
  // was added.
  void run(int layer, const std::vector<int>& sequence_of, float* hidden, size_t width, Worker& w) const;
};

}  // namespace thrifty
