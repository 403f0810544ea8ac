// A packed linear layer as Python gives it.
#pragma once
#include <memory>

#include "bind/array.hpp"
#include "types.hpp"

namespace thrifty {

struct BoundLinear {
  Linear linear;
  nb::object codes, scales, minimums, zeros, table, bias, overlay;  // the arrays that `linear` points into
  std::unique_ptr<LowRank> low = nullptr;                           // what is added to it, and the two linears of that
  nb::object down = nb::none(), up = nb::none();
  std::unique_ptr<TensorTrain> train = nullptr;  // what the product is made of in place of codes, and its linears
  nb::object sites = nb::none();
};

void bind_linear(nb::module_& m);

}  // namespace thrifty
