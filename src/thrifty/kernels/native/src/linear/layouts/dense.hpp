// Numbers as they are, not codes (formats/dense.py): bf16 in pairs of columns of sixteen rows, fp16 and fp32 in plain
// rows.
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

struct bf16 {
  static constexpr LayoutTraits traits = {.name = "bf16", .family = Family::pairs};
};
struct f16 {
  static constexpr LayoutTraits traits = {.name = "f16", .family = Family::plain, .number = 2};
};
struct f32 {
  static constexpr LayoutTraits traits = {.name = "f32", .family = Family::plain, .number = 4};
};

}  // namespace thrifty::layouts
