#include "plan/adapters.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "linear/linear.hpp"

namespace thrifty {

void AdapterTable::set(int linear, Adapter values) {
  if (linear < 0 || (size_t)linear >= entries_.size())
    throw std::invalid_argument("linear " + std::to_string(linear) + " does not exist");
  if (values.rank < 1 || !values.down || !values.up)
    throw std::invalid_argument("an adapter needs both matrices and a positive rank");
  entries_[(size_t)linear] = values;
  rank_ = std::max(rank_, values.rank);
}

Adapters::Adapters(std::vector<const AdapterTable*> tables, const std::vector<Linear>& linears)
    : linears_(linears), tables_(std::move(tables)) {
  for (const AdapterTable* table : tables_) {
    if (!table) throw std::invalid_argument("an adapter is None");
    if (table->linears() != linears_.size())
      throw std::invalid_argument("an adapter of " + std::to_string(table->linears()) +
                                  " linears does not fit a plan of " + std::to_string(linears_.size()));
    rank_ = std::max(rank_, table->rank());
  }
}

void Adapters::choose(std::vector<int32_t> of_row) { of_row_ = std::move(of_row); }

void Adapters::check(int rows) {
  if (of_row_.size() != (size_t)rows)
    throw std::invalid_argument("adapters were chosen for " + std::to_string(of_row_.size()) + " rows; the step has " +
                                std::to_string(rows));
  for (size_t i = 0; i < of_row_.size(); i++)
    if (of_row_[i] < -1 || of_row_[i] >= (int32_t)tables_.size())
      throw std::invalid_argument("row " + std::to_string(i) + " wants adapter " + std::to_string(of_row_[i]) +
                                  "; the call has " + std::to_string(tables_.size()));
  lowered_.resize((size_t)rows * kTogether * (size_t)rank_);
}

bool Adapters::touches(const std::vector<int>& linears) const {
  return std::any_of(linears.begin(), linears.end(), [&](int linear) {
    return std::any_of(tables_.begin(), tables_.end(), [&](const AdapterTable* table) { return table->find(linear); });
  });
}

const Adapter* Adapters::find(int row, int linear) const {
  const int32_t number = of_row_[(size_t)row];
  return number < 0 ? nullptr : tables_[(size_t)number]->find(linear);
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
