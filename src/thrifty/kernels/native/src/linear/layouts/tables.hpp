// Codes that are places in the linear's own table of 16 or 256 values of fp32 (formats/codebook.py).
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

struct table4 {
  static constexpr LayoutTraits traits = {.name = "table4", .family = Family::table, .codes = {4, 0, false, 0}};
};
struct table8 {
  static constexpr LayoutTraits traits = {.name = "table8", .family = Family::table, .codes = {8, 0, false, 0}};
};

}  // namespace thrifty::layouts
