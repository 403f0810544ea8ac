// Low-rank additions to chosen linears, different ones for the rows of a step: y += scale * up (down x).
#pragma once
#include <vector>

#include "pool.hpp"
#include "types.hpp"

namespace thrifty {

// What is added to one linear.
struct Adapter {
  const float* down = nullptr;  // [rank, in]
  const float* up = nullptr;    // [out, rank]
  int rank = 0;                 // 0: leaves the linear as it is
  float scale = 0.0f;
};

// One adapter for a plan of so many linears: made once, and given to every step that uses it.
class AdapterTable {
 public:
  explicit AdapterTable(size_t linears) : entries_(linears) {}
  void set(int linear, Adapter values);  // throws std::invalid_argument
  const Adapter* find(int linear) const {
    const Adapter& entry = entries_[(size_t)linear];
    return entry.rank ? &entry : nullptr;
  }
  size_t linears() const { return entries_.size(); }
  int rank() const { return rank_; }  // the greatest of any linear

 private:
  std::vector<Adapter> entries_;  // by linear
  int rank_ = 0;
};

// The adapters of one call. A row's result depends on its own adapter only.
class Adapters {
 public:
  static constexpr int kTogether = 3;  // linears that one operation computes from the same rows
  Adapters(std::vector<const AdapterTable*> tables, const std::vector<Linear>& linears);
  void choose(std::vector<int32_t> of_row);  // an adapter's number for each row, or -1
  void check(int rows);                      // before a step of so many rows; throws std::invalid_argument
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
  int rank_ = 0;
  std::vector<int32_t> of_row_;
  std::vector<const AdapterTable*> tables_;
  std::vector<float> lowered_;  // [row, place, rank]
};

}  // namespace thrifty
