#include "plan/adapters.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "linear/linear.hpp"

namespace thrifty {

Adapters::Adapters(int count, const std::vector<Linear>& linears)
    : linears_(linears), count_(count), table_((size_t)count * linears.size()), touched_(linears.size()) {}

void Adapters::set(int adapter, int linear, Adapter values) {
  if (adapter < 0 || adapter >= count_)
    throw std::invalid_argument("adapter " + std::to_string(adapter) + " is outside the call's " +
                                std::to_string(count_));
  if (linear < 0 || (size_t)linear >= linears_.size())
    throw std::invalid_argument("linear " + std::to_string(linear) + " does not exist");
  if (values.rank < 1 || !values.down || !values.up)
    throw std::invalid_argument("an adapter needs both matrices and a positive rank");
  table_[(size_t)adapter * linears_.size() + (size_t)linear] = values;
  touched_[(size_t)linear] = 1;
  rank_ = std::max(rank_, values.rank);
}

void Adapters::choose(std::vector<int32_t> of_row) { of_row_ = std::move(of_row); }

void Adapters::check(int rows) {
  if (of_row_.size() != (size_t)rows)
    throw std::invalid_argument("adapters were chosen for " + std::to_string(of_row_.size()) + " rows; the step has " +
                                std::to_string(rows));
  for (size_t i = 0; i < of_row_.size(); i++)
    if (of_row_[i] < -1 || of_row_[i] >= count_)
      throw std::invalid_argument("row " + std::to_string(i) + " wants adapter " + std::to_string(of_row_[i]) +
                                  "; the call has " + std::to_string(count_));
  lowered_.resize((size_t)rows * kTogether * (size_t)rank_);
}

bool Adapters::touches(const std::vector<int>& linears) const {
  return std::any_of(linears.begin(), linears.end(), [&](int i) { return touched_[(size_t)i] != 0; });
}

const Adapter* Adapters::find(int row, int linear) const {
  if (of_row_[(size_t)row] < 0) return nullptr;
  const Adapter& a = table_[(size_t)of_row_[(size_t)row] * linears_.size() + (size_t)linear];
  return a.rank ? &a : nullptr;
}

void Adapters::lower(const std::vector<int>& linears, int row, const float* x) {
  for (size_t place = 0; place < linears.size(); place++) {
    const Adapter* a = find(row, linears[place]);
    const size_t in = (size_t)linears_[(size_t)linears[place]].in;
    float* to = lowered(row, (int)place);
    for (int r = 0; a && r < a->rank; r++) to[r] = dot(a->down + (size_t)r * in, x, (int)in);
  }
}

void Adapters::raise(int linear, int place, int row0, int row1, int from, int to, float* y, size_t stride) const {
  for (int row = row0; row < row1; row++, y += stride) {
    const Adapter* a = find(row, linear);
    if (!a) continue;
    const float* low = lowered_.data() + ((size_t)row * kTogether + (size_t)place) * (size_t)rank_;
    for (int c = from; c < to; c++) y[c - from] += a->scale * dot(a->up + (size_t)c * (size_t)a->rank, low, a->rank);
  }
}

}  // namespace thrifty
