// Rows that are not plain, from Python: their adapters, and what is added and copied out behind the layers.
#include "bind/bind_rows.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "bind/array.hpp"
#include "bind/bind_plan.hpp"

using namespace nanobind::literals;

namespace thrifty {

namespace {

// What Python calls AdapterTable: one adapter for one plan, and the arrays that it points into.
struct BoundAdapter {
  AdapterTable table;
  nb::list entries;  // (linear, down [rank, in], up [out, rank], scale) each
};

void make_adapter(BoundAdapter* made, const HeldPlan& plan, const nb::list& entries) {
  AdapterTable table(plan.linears.size());
  for (nb::handle given : entries) {
    const auto [linear, down, up, scale] = cast<std::tuple<int, nb::object, nb::object, float>>(
        given, "an entry of an adapter", "(linear, down, up, scale)");
    if (linear < 0 || (size_t)linear >= plan.linears.size())
      throw std::invalid_argument("linear " + std::to_string(linear) + " does not exist");
    const Linear& target = plan.linears[(size_t)linear];
    const auto lower = array<const float>(down, "down", {kAny, target.in});
    const auto raise = array<const float>(up, "up", {target.out, lower.shape[0]});
    table.set(linear, {lower.data, raise.data, (int)lower.shape[0], scale});
  }
  new (made) BoundAdapter{std::move(table), nb::list(entries)};
}

int layer_of(const Plan& plan, int layer, const char* what) {
  if (layer < 0 || layer >= plan.shape.layers())
    throw std::invalid_argument(std::string(what) + " of layer " + std::to_string(layer) +
                                " is outside the plan's layers");
  return layer;
}

}  // namespace

std::optional<Adapters> adapters_of(const Plan& plan, const nb::list& given, const std::vector<int32_t>& of_row) {
  if (nb::len(given) == 0) return std::nullopt;
  std::vector<const AdapterTable*> tables;
  for (nb::handle adapter : given)
    tables.push_back(&cast<const BoundAdapter&>(adapter, "an adapter", "an AdapterTable").table);
  std::optional<Adapters> adapters(std::in_place, std::move(tables), plan.linears);
  adapters->choose(of_row);
  return adapters;
}

AfterLayer after_of(const Plan& plan, const AfterFields& fields, size_t sequences, int64_t rows) {
  AfterLayer after;
  const int64_t width = plan.width(0);
  const auto tapped = array_or_none<const int32_t>(fields.tap_rows, "tap_rows", {kAny});
  after.tap_rows = tapped.data, after.tap_count = (int)tapped.shape[0];
  for (nb::handle given : fields.taps) {
    const auto [layer, out] = cast<std::pair<int, nb::object>>(given, "a tap", "(layer, array)");
    after.taps.resize((size_t)plan.shape.layers(), nullptr);
    after.taps[(size_t)layer_of(plan, layer, "a tap")] =
        array<float>(out, "a tap", {fields.tap_rows.is_none() ? rows : tapped.shape[0], width}).data;
  }
  for (nb::handle given : fields.residual) {
    const auto [layer, vectors] =
        cast<std::pair<int, nb::list>>(given, "a residual add", "(layer, [array or None a sequence])");
    if (nb::len(vectors) != sequences)
      throw std::invalid_argument("residual adds of " + std::to_string(nb::len(vectors)) + " sequences; the step has " +
                                  std::to_string(sequences));
    after.residual.resize((size_t)plan.shape.layers());
    for (nb::handle vector : vectors)
      after.residual[(size_t)layer_of(plan, layer, "a residual add")].push_back(
          array_or_none<const float>(vector, "a residual add", {width}).data);
  }
  return after;
}

void bind_adapters(nb::module_& m) {
  nb::class_<BoundAdapter>(m, "AdapterTable", "One adapter's low-rank matrices for one plan; it keeps them.")
      .def("__init__", &make_adapter, "plan"_a, "entries"_a,
           "(linear, down fp32 [rank, in], up fp32 [out, rank], scale) each.");
}

}  // namespace thrifty
