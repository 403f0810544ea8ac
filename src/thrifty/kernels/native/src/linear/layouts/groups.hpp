// Codes of one level: one scale (and a minimum, or a zero point) a row and group of columns (formats/group.py,
// formats/zero_point.py, formats/signs.py).
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

struct int4 {
  static constexpr LayoutTraits traits = {.name = "int4",
                                          .family = Family::groups,
                                          .codes = {4, 0, false, 8},
                                          .minimums = Minimums::may,
                                          .values_with_minimums = true,
                                          .zeros = true,
                                          .direct = true};
};
struct int5 {
  static constexpr LayoutTraits traits = {.name = "int5",
                                          .family = Family::groups,
                                          .codes = {4, 1, false, 16},
                                          .minimums = Minimums::may,
                                          .values_with_minimums = true};
};
struct int8 {
  static constexpr LayoutTraits traits = {.name = "int8",
                                          .family = Family::groups,
                                          .codes = {8, 0, false, 128},
                                          .minimums = Minimums::may,
                                          .zeros = true,
                                          .direct = true};
};
struct iq4_nl {
  static constexpr LayoutTraits traits = {.name = "iq4_nl", .family = Family::groups, .codes = {4, 0, true, 128}};
};
struct int2 {
  static constexpr LayoutTraits traits = {.name = "int2",
                                          .family = Family::groups,
                                          .codes = {2, 0, false, 2},
                                          .minimums = Minimums::may,
                                          .values_with_minimums = true,
                                          .zeros = true};
};
struct int3 {
  static constexpr LayoutTraits traits = {.name = "int3",
                                          .family = Family::groups,
                                          .codes = {2, 1, false, 4},
                                          .minimums = Minimums::may,
                                          .values_with_minimums = true,
                                          .zeros = true};
};
// -1, 0, 1 as codes 0, 1, 2 of two bits: five codes a byte would be a fifth smaller, but each takes twice the
// instructions to unpack, which costs more time than the bytes save.
struct ternary {
  static constexpr LayoutTraits traits = {
      .name = "ternary", .family = Family::groups, .codes = {2, 0, false, 1}, .wide_groups = true};
};
// -1 and 1 as bits 0 and 1.
struct binary {
  static constexpr LayoutTraits traits = {
      .name = "binary", .family = Family::groups, .codes = {1, 0, false, 1}, .wide_groups = true};
};

}  // namespace thrifty::layouts
