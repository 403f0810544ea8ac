// What Python calls Plan.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "plan.hpp"

namespace thrifty {

// A plan, and the objects that it points into.
struct HeldPlan : Plan {
  using Plan::Plan;
  std::vector<nanobind::object> alive;
};

void bind_decoding(nanobind::module_& m, nanobind::class_<HeldPlan>& plan);

}  // namespace thrifty
