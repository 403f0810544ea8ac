// Every format of the cache's keys and values: the one list, in the order of formats/kv.py.
#pragma once
#include "common.hpp"

// name, bits of a code (0: plain numbers), groups of 64 numbers that share a scale (2: of 32 each), bytes of a plain
// number
#define THRIFTY_FORMATS(DO) \
  DO(f32, 0, 2, 4)          \
  DO(bf16, 0, 2, 2) DO(int8, 8, 2, 0) DO(int4, 4, 2, 0) DO(int2, 2, 2, 0) DO(int4g16, 4, 4, 0) DO(int2g16, 2, 4, 0)

namespace thrifty {

#define THRIFTY_NAMED(name, bits, groups, number) name,
enum class Format : int { THRIFTY_FORMATS(THRIFTY_NAMED) };
#undef THRIFTY_NAMED

struct FormatTraits {
  const char* name;
  int bits, groups, number;
};
#define THRIFTY_TRAITS(name, bits, groups, number) {#name, bits, groups, number},
constexpr FormatTraits kFormatTraits[] = {THRIFTY_FORMATS(THRIFTY_TRAITS)};
#undef THRIFTY_TRAITS
constexpr int kFormats = sizeof kFormatTraits / sizeof kFormatTraits[0];

THRIFTY_SHARED constexpr int format_bits(Format f) { return kFormatTraits[(int)f].bits; }
THRIFTY_SHARED constexpr int format_groups(Format f) { return kFormatTraits[(int)f].groups; }
THRIFTY_SHARED constexpr size_t number_bytes(Format f) { return (size_t)kFormatTraits[(int)f].number; }

// Calls work<bits, groups>() of a format of codes; false, with nothing called, for plain numbers.
template <class F> THRIFTY_SHARED bool with_codes(Format format, F&& work) {
  switch (format) {
#define THRIFTY_CASE(name, bits, groups, number) \
  case Format::name:                             \
    if constexpr (bits == 0) return false;       \
    else return work.template operator()<bits, groups>(), true;
    THRIFTY_FORMATS(THRIFTY_CASE)
#undef THRIFTY_CASE
  }
  return false;
}

}  // namespace thrifty
