// Rows that are not plain, as a step takes them from Python.
#pragma once
#include <nanobind/nanobind.h>

#include <optional>
#include <vector>

#include "plan/plan.hpp"

namespace thrifty {

// The adapters of a step: AdapterTables, and each row's number or -1. None where there are none.
std::optional<Adapters> adapters_of(const Plan& plan, const nanobind::list& given, const std::vector<int32_t>& of_row);

struct AfterFields {
  const nanobind::list& taps;        // (layer, array [tapped rows, hidden size]) each
  const nanobind::object& tap_rows;  // int32 [tapped rows], or None
  const nanobind::list& residual;    // (layer, [array [hidden size] or None a sequence]) each
};

// What a step of so many sequences and rows does behind its layers.
AfterLayer after_of(const Plan& plan, const AfterFields& fields, size_t sequences, int64_t rows);

void bind_adapters(nanobind::module_& m);

}  // namespace thrifty
