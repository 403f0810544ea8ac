// Codes that are looked up: in tables of each row's own (formats/row_table.py), or as vectors of neighbouring rows
// (formats/vector.py).
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty::layouts {

// Values of a table are int8, read as int8 plus 128: what remains is a code of 8 bits with one scale a row.
struct row_table3 {
  static constexpr LayoutTraits traits = {
      .name = "row_table3", .family = Family::row_tables, .codes = {2, 1, false, 0}};
};
struct row_table4 {
  static constexpr LayoutTraits traits = {
      .name = "row_table4", .family = Family::row_tables, .codes = {4, 0, false, 0}};
};

// Of 4 or 8 rows; how many bits a code has is the linear's own.
struct vectors4 {
  static constexpr LayoutTraits traits = {.name = "vectors4", .family = Family::vectors, .length = 4};
};
struct vectors8 {
  static constexpr LayoutTraits traits = {.name = "vectors8", .family = Family::vectors, .length = 8};
};

}  // namespace thrifty::layouts
