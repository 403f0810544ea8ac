// A packed linear layer as Python gives it.
#pragma once
#include "bind/array.hpp"
#include "types.hpp"

namespace thrifty {

struct BoundLinear {
  Linear linear;
  nb::object codes, scales, minimums, zeros, table, bias, overlay;  // the arrays that `linear` points into
};

void bind_linear(nb::module_& m);

}  // namespace thrifty
