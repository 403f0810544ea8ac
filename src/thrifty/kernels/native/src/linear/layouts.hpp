// Every layout of weights: the one list, from which names, sizes and kernels follow. A layout is a struct of its name
// in linear/layouts/.
#pragma once
#include "linear/layouts/dense.hpp"
#include "linear/layouts/groups.hpp"
#include "linear/layouts/iq4_xs.hpp"
#include "linear/layouts/lookups.hpp"
#include "linear/layouts/paired.hpp"
#include "linear/layouts/planes.hpp"
#include "linear/layouts/q2_k.hpp"
#include "linear/layouts/q3_k.hpp"
#include "linear/layouts/q45_k.hpp"
#include "linear/layouts/q6_k.hpp"
#include "linear/layouts/sparse.hpp"
#include "linear/layouts/tables.hpp"
#include "linear/layouts/tokens.hpp"

// clang-format off
#define THRIFTY_LAYOUTS(DO) \
  DO(int4) DO(int5) DO(int8) DO(iq4_nl) DO(bf16) DO(f16) DO(f32) \
  DO(q2_k) DO(q3_k) DO(q4_k) DO(q5_k) DO(q6_k) DO(iq4_xs) DO(table4) DO(table8) \
  DO(int2) DO(int3) DO(ternary) DO(binary) \
  DO(planes1) DO(planes2) DO(planes3) DO(planes4) DO(planes5) DO(planes6) DO(planes7) DO(planes8) \
  DO(row_table3) DO(row_table4) DO(vectors4) DO(vectors8) \
  DO(paired_first) DO(paired_second) \
  DO(int8_2_4) DO(int4_2_4) DO(bf16_2_4) \
  DO(int4_token) DO(int8_token)
// clang-format on

namespace thrifty {

#define THRIFTY_NAMED(name) name,
enum class Layout : int { THRIFTY_LAYOUTS(THRIFTY_NAMED) };
#undef THRIFTY_NAMED

#define THRIFTY_TRAITS(name) layouts::name::traits,
constexpr LayoutTraits kLayoutTraits[] = {THRIFTY_LAYOUTS(THRIFTY_TRAITS)};
#undef THRIFTY_TRAITS
constexpr int kLayouts = sizeof kLayoutTraits / sizeof kLayoutTraits[0];

// The struct of a layout.
template <Layout L> struct LayoutOf;
#define THRIFTY_STRUCT(name) \
  template <> struct LayoutOf<Layout::name> : layouts::name {};
THRIFTY_LAYOUTS(THRIFTY_STRUCT)
#undef THRIFTY_STRUCT

THRIFTY_SHARED constexpr const LayoutTraits& traits(Layout layout) { return kLayoutTraits[(int)layout]; }
THRIFTY_SHARED constexpr Reads reads(Layout layout) { return traits(layout).reads(); }
THRIFTY_SHARED constexpr Codes codes_of(Layout layout, bool minimums) { return traits(layout).codes_with(minimums); }
THRIFTY_SHARED constexpr SubScales sub_scales(Layout layout) { return traits(layout).subs; }
THRIFTY_SHARED constexpr bool two_levels(Layout layout) { return traits(layout).family == Family::superblocks; }
THRIFTY_SHARED constexpr int record_bytes(Layout layout) { return traits(layout).record_bytes(); }

// ggml's kvalues_iq4nl plus 128.
constexpr uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

}  // namespace thrifty
