// What Python calls Plan.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "plan/plan.hpp"

namespace thrifty {

// A plan, and the objects that it points into.
struct HeldPlan : Plan {
  using Plan::Plan;
  std::vector<nanobind::object> alive;
};

// Where the attention of each sequence adds its probabilities, as a Step's `sums` say it; counts: rows of each.
std::vector<Step::Sums> all_sums(const Plan& plan, const nanobind::list& given, const std::vector<int>& counts);

void bind_decoding(nanobind::module_& m, nanobind::class_<HeldPlan>& plan);

}  // namespace thrifty
