// Codes of one level: one scale (and a minimum, or a zero point) a row and group of columns (formats/group.py,
// formats/zero_point.py).
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

}  // namespace thrifty::layouts
