#include "bind_linear.hpp"

#include <new>
#include <stdexcept>
#include <string>

#include "linear.hpp"

namespace thrifty {

using namespace nb::literals;

namespace {

// The memory of the codes, whose type and shape depend on the kind.
uintptr_t codes_of(nb::handle codes, int kind, int64_t out, int64_t in) {
  const int64_t tiles = (out + kLanes - 1) / kLanes;
  if (kind == 32) return (uintptr_t)array<const float>(codes, "codes", {out, in}).data;
  if (kind == 16) return (uintptr_t)array<const uint16_t>(codes, "codes", {tiles, (in + 1) / 2, kLanes, 2}).data;
  return (uintptr_t)array<const uint8_t>(codes, "codes", {tiles, (in + kBlockColumns - 1) / kBlockColumns, 64 * kind}).data;
}

void make(BoundLinear* to, int kind, nb::object codes, nb::object scales, nb::object minimums, nb::object zeros, nb::object bias, int out, int in, int group) {
  check_linear(kind, out, in, group);
  uintptr_t scale = 0, minimum = 0;
  const uint8_t* zero = nullptr;
  if (kind < 16) {
    const int64_t tiles = (out + kLanes - 1) / kLanes, groups = ((int64_t)in + group - 1) / group;
    scale = (uintptr_t)array<const Half>(scales, "scales", {tiles, groups, kLanes}).data;
    minimum = (uintptr_t)array_or_none<const Half>(minimums, "minimums", {tiles, groups, kLanes}).data;
    zero = array_or_none<const uint8_t>(zeros, "zeros", {tiles, groups, kLanes}).data;
    if (minimum && zero) throw std::invalid_argument("a linear has minimums or zero points, not both");
  }
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(kind, codes_of(codes, kind, out, in), scale, minimum, shift, out, in, group);
  linear.zeros = zero;
  new (to) BoundLinear{linear, codes, scales, minimums, zeros, bias};
}

// Codes into a table of values; the kind of plain fp32 rows, which it reads as they do.
void make_table(BoundLinear* to, nb::object table, nb::object codes, nb::object scales, nb::object bias, int out, int in, int group) {
  check_linear(32, out, in, 0);
  if (group < kBlockColumns || group % kBlockColumns) throw std::invalid_argument("a table's group must be a multiple of " + std::to_string(kBlockColumns) + ", not " + std::to_string(group));
  const auto values = array<const float>(table, "table", {kAny});
  if (values.shape[0] != 16 && values.shape[0] != 256) throw std::invalid_argument("a table has 16 or 256 values, not " + std::to_string(values.shape[0]));
  const int bits = values.shape[0] == 16 ? 4 : 8;
  const int64_t tiles = (out + kLanes - 1) / kLanes, groups = ((int64_t)in + group - 1) / group;
  const auto packed = array<const uint8_t>(codes, "codes", {tiles, (in + kBlockColumns - 1) / kBlockColumns, 64 * bits});
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(32, (uintptr_t)packed.data, 0, 0, shift, out, in, 0);
  linear.table = values.data, linear.table_bits = bits, linear.group = group;
  linear.table_scales = array<const float>(scales, "scales", {tiles, groups, kLanes}).data;
  new (to) BoundLinear{linear, codes, scales, table, nb::none(), bias};
}

}  // namespace

void bind_linear(nb::module_& m) {
  nb::class_<BoundLinear>(m, "Linear", "A packed linear layer; keeps its arrays. kind: 4, 8 (codes: uint8, scales and minimums: float16), 16 (codes: bf16 as uint16) or 32 (codes: plain float32).")
      .def("__init__", &make, nb::kw_only(), "kind"_a, "codes"_a, "scales"_a = nb::none(), "minimums"_a = nb::none(), "zeros"_a = nb::none(), "bias"_a = nb::none(), "out_features"_a, "in_features"_a, "group"_a = 0)
      .def("__init__", &make_table, nb::kw_only(), "table"_a, "codes"_a, "scales"_a, "bias"_a = nb::none(), "out_features"_a, "in_features"_a, "group"_a)
      .def_prop_ro("kind", [](const BoundLinear& b) { return b.linear.kind; })
      .def_prop_ro("out_features", [](const BoundLinear& b) { return b.linear.out; })
      .def_prop_ro("in_features", [](const BoundLinear& b) { return b.linear.in; });
}

}  // namespace thrifty
