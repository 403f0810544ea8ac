// Codes multiplied with activations that have one scale a row of activations, not one every 32 columns
// (formats/token_wise.py): one scale a row of weights, or a row and group of columns, and no minimums.
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

struct int4_token {
  static constexpr LayoutTraits traits = {.name = "int4_token",
                                          .family = Family::groups,
                                          .codes = {4, 0, false, 8},
                                          .direct = true,
                                          .wide_groups = true,
                                          .token_wise = true};
};
struct int8_token {
  static constexpr LayoutTraits traits = {.name = "int8_token",
                                          .family = Family::groups,
                                          .codes = {8, 0, false, 128},
                                          .direct = true,
                                          .wide_groups = true,
                                          .token_wise = true,
                                          .outliers = true};
};

}  // namespace thrifty::layouts
