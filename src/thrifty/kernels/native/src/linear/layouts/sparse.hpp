// Two of every four columns (formats/sparse_2_4.py). A block of 16 rows x 32 columns is a vector of words, one a row,
// whose bit c says whether column c is kept, and behind it the kept numbers in their order: of 8 and 4 bits as planes
// of codes of half as many columns, of bf16 a vector of pairs for each four columns.
#pragma once
#include "linear/layouts/traits.hpp"

namespace thrifty {

// Where the columns of a group of four take their numbers from, by the lowest three bits of its mask (which tell the
// six masks of two apart); twice, for instructions that look at four bits. A byte a column: the first or the second of
// the two that are kept, 128: neither.
constexpr uint32_t kKeptPlaces[16] = {0x80808080, 0x01808000, 0x01800080, 0x80800100, 0x01008080, 0x80018000,
                                      0x80010080, 0x80808080, 0x80808080, 0x01808000, 0x01800080, 0x80800100,
                                      0x01008080, 0x80018000, 0x80010080, 0x80808080};
// The same of numbers of two bytes: the bytes of the first two columns, and of the last two.
constexpr uint32_t kKeptPairs[2][16] = {
    {0x80808080, 0x80800100, 0x01008080, 0x03020100, 0x80808080, 0x80800100, 0x01008080, 0x80808080, 0x80808080,
     0x80800100, 0x01008080, 0x03020100, 0x80808080, 0x80800100, 0x01008080, 0x80808080},
    {0x80808080, 0x03028080, 0x03028080, 0x80808080, 0x03020100, 0x80800302, 0x80800302, 0x80808080, 0x80808080,
     0x03028080, 0x03028080, 0x80808080, 0x03020100, 0x80800302, 0x80800302, 0x80808080}};

}  // namespace thrifty

namespace thrifty::layouts {

struct int8_2_4 {
  static constexpr LayoutTraits traits = {
      .name = "int8_2_4", .family = Family::groups, .codes = {8, 0, false, 128, true}};
};
struct int4_2_4 {
  static constexpr LayoutTraits traits = {
      .name = "int4_2_4", .family = Family::groups, .codes = {4, 0, false, 8, true}};
};
struct bf16_2_4 {
  static constexpr LayoutTraits traits = {
      .name = "bf16_2_4", .family = Family::pairs, .codes = {16, 0, false, 0, true}};
};

}  // namespace thrifty::layouts
