// Two weights of one shape in the same words, one a column and row (formats/paired.py): bits 15 and 14 are their signs,
// 13 and 12 whether they have the value, 11 to 7 its exponent less 112, 6 to 0 its mantissa as bf16's. Pairs of columns
// as of bf16.
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

struct paired_first {
  static constexpr LayoutTraits traits = {.name = "paired_first", .family = Family::pairs, .member = 1};
};
struct paired_second {
  static constexpr LayoutTraits traits = {.name = "paired_second", .family = Family::pairs, .member = 2};
};

}  // namespace thrifty::layouts
