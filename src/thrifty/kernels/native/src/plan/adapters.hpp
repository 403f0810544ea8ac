// Low-rank additions to chosen linears, different ones for the rows of a step: y += scale * up (down x).
#pragma once
#include <vector>

#include "pool.hpp"
#include "types.hpp"

namespace thrifty {

struct Adapter {
  const float* down = nullptr;  // [rank, in]
  const float* up = nullptr;    // [out, rank]
  int rank = 0;                 // 0: leaves the linear as it is
  float scale = 0.0f;
};

// The adapters of one call. A row's result depends on its own adapter only.
class Adapters {
 public:
  static constexpr int kTogether = 3;  // linears that one operation computes from the same rows
  Adapters(int count, const std::vector<Linear>& linears);
  void set(int adapter, int linear, Adapter values);  // throws std::invalid_argument
  void choose(std::vector<int32_t> of_row);           // an adapter's number for each row, or -1
  void check(int rows);                               // before a step of so many rows; throws std::invalid_argument
  bool touches(const std::vector<int>& linears) const;
  // down x of row `row`, for the linears of one operation in order.
  void lower(const std::vector<int>& linears, int row, const float* x);
  // Adds to columns from..to-1 of rows row0..row1-1; y: column `from` of row row0. `place` of the linear in its
  // operation.
  void raise(int linear, int place, int row0, int row1, int from, int to, float* y, size_t stride) const;

 private:
  const Adapter* find(int row, int linear) const;
  float* lowered(int row, int place) {
    return lowered_.data() + ((size_t)row * kTogether + (size_t)place) * (size_t)rank_;
  }

  const std::vector<Linear>& linears_;
  int count_, rank_ = 0;
  std::vector<int32_t> of_row_;
  std::vector<Adapter> table_;  // [adapter, linear]
  std::vector<uint8_t> touched_;
  std::vector<float> lowered_;  // [row, place, rank]
};

}  // namespace thrifty
