// Bipolar integers of 1 to 8 bits in bit planes, a scale a row and group of columns (formats/bit_planes.py).
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

// Codes of a block: a plane of 64 bytes a bit, the lowest first. Bit c of a plane's 32-bit word `lane` is column c.
#define THRIFTY_PLANES(number)                                                                       \
  struct planes##number {                                                                            \
    static constexpr LayoutTraits traits = {                                                         \
        .name = "planes" #number, .family = Family::planes, .codes = {number}, .wide_groups = true}; \
  };
THRIFTY_PLANES(1)
THRIFTY_PLANES(2)
THRIFTY_PLANES(3)
THRIFTY_PLANES(4)
THRIFTY_PLANES(5)
THRIFTY_PLANES(6)
THRIFTY_PLANES(7)
THRIFTY_PLANES(8)
#undef THRIFTY_PLANES

}  // namespace thrifty::layouts
