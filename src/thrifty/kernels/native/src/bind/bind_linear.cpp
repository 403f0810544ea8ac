#include "bind/bind_linear.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "linear/linear.hpp"
#include "linear/repack.hpp"
#include "linear/tensor_train.hpp"

namespace thrifty {

using namespace nb::literals;

namespace {

// The memory of the codes, whose type and shape depend on the layout.
uintptr_t codes_of(nb::handle codes, Layout layout, int64_t out, int64_t in) {
  const int64_t tiles = (out + kLanes - 1) / kLanes, blocks = (in + kBlockColumns - 1) / kBlockColumns;
  const LayoutTraits& own = traits(layout);
  switch (own.family) {
    case Family::plain:
      return own.number == 4 ? (uintptr_t)array<const float>(codes, "codes", {out, in}).data
                             : (uintptr_t)array<const Half>(codes, "codes", {out, in}).data;
    case Family::pairs:
      if (own.codes.sparse)
        return (uintptr_t)array<const uint8_t>(codes, "codes", {tiles, blocks, own.codes.bytes()}).data;
      return (uintptr_t)array<const uint16_t>(codes, "codes", {tiles, (in + 1) / 2, kLanes, 2}).data;
    case Family::superblocks:
      return (uintptr_t)array<const uint8_t>(codes, "records", {tiles, blocks / kSuperblock, own.record_bytes()}).data;
    default:
      return (uintptr_t)array<const uint8_t>(codes, "codes", {tiles, blocks, own.codes.bytes()}).data;
  }
}

// Refuses what a linear of the layout does not read.
void only_where(bool read, Layout layout, const char* what, const nb::object& given) {
  if (!read && !given.is_none())
    throw std::invalid_argument(std::string("a linear of layout ") + name_of(layout) + " has no " + what);
}

// Codes into a table of values, which read plain rows of activations.
void make_table(BoundLinear* to, Layout layout, nb::object table, nb::object codes, nb::object scales, nb::object bias,
                int out, int in, int group) {
  const auto values = array<const float>(table, "table", {1 << thrifty::codes_of(layout, false).bits()});
  const int64_t tiles = (out + kLanes - 1) / kLanes, groups = ((int64_t)in + group - 1) / group;
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(layout, codes_of(codes, layout, out, in), 0, 0, shift, out, in, group);
  linear.table = values.data, linear.table_scales = array<const float>(scales, "scales", {tiles, groups, kLanes}).data;
  new (to) BoundLinear{linear, codes, scales, nb::none(), nb::none(), table, bias};
}

// Bit planes, which read plain rows of activations.
void make_planes(BoundLinear* to, Layout layout, nb::object codes, nb::object scales, nb::object bias, int out, int in,
                 int group, int activation_bits) {
  check_planes(layout, in, group, activation_bits);
  const int64_t tiles = (out + kLanes - 1) / kLanes, groups = ((int64_t)in + group - 1) / group;
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(layout, codes_of(codes, layout, out, in), 0, 0, shift, out, in, group);
  linear.scales = (const uint16_t*)array<const Half>(scales, "scales", {tiles, groups, kLanes}).data;
  linear.activation_bits = activation_bits;
  new (to) BoundLinear{linear, codes, scales, nb::none(), nb::none(), nb::none(), bias};
}

// Codes into tables of rows.
void make_row_tables(BoundLinear* to, Layout layout, nb::object tables, nb::object codes, nb::object scales,
                     nb::object bias, int out, int in) {
  const int64_t tiles = (out + kLanes - 1) / kLanes, values = 1 << thrifty::codes_of(layout, false).bits();
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data,
                  scale = (uintptr_t)array<const Half>(scales, "scales", {tiles, kLanes}).data;
  Linear linear = make_linear(layout, codes_of(codes, layout, out, in), scale, 0, shift, out, in, 0);
  linear.row_tables = (const int8_t*)array<const uint8_t>(tables, "table", {tiles, kLanes, values}).data;
  new (to) BoundLinear{linear, codes, scales, nb::none(), nb::none(), tables, bias};
}

// Bits of the codes of a table of vectors [books, entries, length].
int bits_of(int64_t entries) {
  for (int bits : {4, 8, 12, 16})
    if (entries == (int64_t)1 << bits) return bits;
  throw std::invalid_argument("a table of vectors has 16, 256, 4096 or 65536 entries, not " + std::to_string(entries));
}

// table: (main, rest or None, books or None). scales, minimums: of columns.
void make_vectors(BoundLinear* to, Layout layout, nb::object table, nb::object codes, nb::object scales,
                  nb::object minimums, nb::object bias, int out, int in) {
  const auto [first, second, books] =
      cast<std::tuple<nb::object, nb::object, nb::object>>(table, "table", "a tuple of main, rest and books");
  const int length = traits(layout).length;
  const int64_t tiles = (out + kLanes - 1) / kLanes, blocks = (in + kBlockColumns - 1) / kBlockColumns;
  const auto values = array<const Half>(first, "main table", {kAny, kAny, length});
  Vectors own;
  own.bits = bits_of(values.shape[1]), own.main = (const uint16_t*)values.data;
  if (!second.is_none()) {
    const auto rest = array<const Half>(second, "rest table", {values.shape[0], kAny, length});
    own.rest_bits = bits_of(rest.shape[1]), own.rest = (const uint16_t*)rest.data;
  }
  own.books = array_or_none<const uint8_t>(books, "books", {in}).data;
  for (int c = 0; own.books && c < in; c++)
    if (own.books[c] >= values.shape[0])
      throw std::invalid_argument("column " + std::to_string(c) + " has book " + std::to_string(own.books[c]) + " of " +
                                  std::to_string(values.shape[0]));
  own.scales = (const uint16_t*)array<const Half>(scales, "scales", {in}).data;
  own.offsets = (const uint16_t*)array<const Half>(minimums, "minimums", {in}).data;
  const uintptr_t memory =
                      (uintptr_t)array<const uint8_t>(codes, "codes", {tiles, blocks, vector_bytes(own, length)}).data,
                  shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(layout, memory, 0, 0, shift, out, in, 0);
  linear.vectors = own;
  new (to) BoundLinear{linear, codes, scales, minimums, nb::none(), table, bias};
}

// Single weights on top: (starts, columns, values), or None.
void put_overlay(BoundLinear& to, nb::object overlay) {
  if (overlay.is_none()) return;
  const auto [starts, columns, values] =
      cast<std::tuple<nb::object, nb::object, nb::object>>(overlay, "overlay", "a tuple of starts, columns and values");
  const Linear& w = to.linear;
  if (w.reads() == Reads::tokens)
    throw std::invalid_argument("single weights on top do not go with activations that have one scale a row");
  const auto rows = array<const int32_t>(starts, "starts", {w.out + 1});
  const auto places = array<const uint16_t>(columns, "columns", {kAny});
  const int64_t count = places.shape[0];
  const auto weights = array<const Half>(values, "values", {count});
  if (rows.data[0] != 0 || rows.data[w.out] != count)
    throw std::invalid_argument("the overlay's rows do not end at its last value");
  for (int r = 0; r < w.out; r++)
    if (rows.data[r] > rows.data[r + 1]) throw std::invalid_argument("the overlay's rows do not follow each other");
  for (int64_t e = 0; e < count; e++)
    if (places.data[e] >= w.in)
      throw std::invalid_argument("the overlay's column " + std::to_string(places.data[e]) + " is outside 0.." +
                                  std::to_string(w.in - 1));
  to.linear.overlay = {rows.data, places.data, (const uint16_t*)weights.data};
  to.overlay = overlay;
}

void make_stored(BoundLinear* to, const std::string& name, nb::object codes, nb::object scales, nb::object minimums,
                 nb::object zeros, nb::object table, nb::object bias, int out, int in, int group, int activation_bits,
                 float threshold) {
  const Layout layout = layout_of(name);
  check_linear(layout, out, in, group);
  const Family family = traits(layout).family;
  const bool coded = traits(layout).coded(), table_coded = family == Family::table, vectors = family == Family::vectors,
             row_tables = family == Family::row_tables;
  const bool planes = family == Family::planes;
  if (threshold != 0 && !traits(layout).outliers)
    throw std::invalid_argument(std::string("a linear of layout ") + name_of(layout) + " has no threshold");
  if (!(threshold >= 0) || std::isinf(threshold))
    throw std::invalid_argument("the threshold of outliers must be a finite number above 0, or 0 for none, not " +
                                std::to_string(threshold));
  only_where(coded || table_coded || vectors || planes, layout, "scales", scales);
  only_where((coded && !row_tables) || vectors, layout, "minimums",
             minimums);  // make_linear knows which of these have some
  only_where(traits(layout).zeros, layout, "zero points", zeros);
  only_where(table_coded || vectors || row_tables, layout, "table", table);
  if (table_coded) return make_table(to, layout, table, codes, scales, bias, out, in, group);
  if (row_tables) return make_row_tables(to, layout, table, codes, scales, bias, out, in);
  if (vectors) return make_vectors(to, layout, table, codes, scales, minimums, bias, out, in);
  if (planes) return make_planes(to, layout, codes, scales, bias, out, in, group, activation_bits);
  if (activation_bits)
    throw std::invalid_argument(std::string("a linear of layout ") + name_of(layout) + " has no activation_bits");
  uintptr_t scale = 0, minimum = 0;
  const uint8_t* zero = nullptr;
  if (coded) {
    const int64_t tiles = (out + kLanes - 1) / kLanes,
                  columns = two_levels(layout) ? kSuperblock * kBlockColumns : group,
                  groups = (in + columns - 1) / columns;
    scale = (uintptr_t)array<const Half>(scales, "scales", {tiles, groups, kLanes}).data;
    minimum = (uintptr_t)array_or_none<const Half>(minimums, "minimums", {tiles, groups, kLanes}).data;
    zero = array_or_none<const uint8_t>(zeros, "zeros", {tiles, groups, kLanes}).data;
    if (minimum && zero) throw std::invalid_argument("a linear has minimums or zero points, not both");
  }
  const uintptr_t shift = (uintptr_t)array_or_none<const float>(bias, "bias", {out}).data;
  Linear linear = make_linear(layout, codes_of(codes, layout, out, in), scale, minimum, shift, out, in, group);
  linear.zeros = zero, linear.threshold = threshold;
  new (to) BoundLinear{linear, codes, scales, minimums, zeros, nb::none(), bias};
}

void make_with_overlay(BoundLinear* to, const std::string& name, nb::object codes, nb::object scales,
                       nb::object minimums, nb::object zeros, nb::object table, nb::object overlay, nb::object bias,
                       int out, int in, int group, int activation_bits, float threshold) {
  make_stored(to, name, codes, scales, minimums, zeros, table, bias, out, in, group, activation_bits, threshold);
  try {
    put_overlay(*to, overlay);
  } catch (...) {
    to->~BoundLinear();
    throw;
  }
}

// V and U of a linear of that shape; null where both are None.
std::unique_ptr<LowRank> low_rank_of(nb::handle down, nb::handle up, int out, int in) {
  if (down.is_none() && up.is_none()) return nullptr;
  const Linear& v = cast<const BoundLinear&>(down, "down", "a Linear [rank, in_features] beside `up`").linear;
  const Linear& u = cast<const BoundLinear&>(up, "up", "a Linear [out_features, rank] beside `down`").linear;
  if (v.in != in || u.out != out || u.in != v.out)
    throw std::invalid_argument("up [" + std::to_string(u.out) + ", " + std::to_string(u.in) + "] and down [" +
                                std::to_string(v.out) + ", " + std::to_string(v.in) + "] do not fit a linear [" +
                                std::to_string(out) + ", " + std::to_string(in) + "]");
  if (v.bias || u.bias || v.low || u.low || v.train || u.train || v.overlay.starts || u.overlay.starts)
    throw std::invalid_argument("up and down have neither bias, overlay nor low rank");
  return std::make_unique<LowRank>(LowRank{v, u});
}

// A train of tensors: sites is a sequence of (Linear, rows, columns), whose bonds follow from their sizes.
void make_sites(BoundLinear* to, const std::string& name, nb::object sites, nb::object bias, int out, int in) {
  if (layout_of(name) != Layout::f32)
    throw std::invalid_argument("a train of tensors reads plain rows, so its layout is f32, not " + name);
  using Sites = std::vector<std::tuple<nb::object, int, int>>;
  std::vector<TensorTrain::Site> given;
  for (const auto& [linear, rows, columns] : cast<Sites>(sites, "sites", "a list of (Linear, rows, columns)"))
    given.push_back({cast<const BoundLinear&>(linear, "site", "a Linear").linear, rows, columns, 1});
  auto train = std::make_unique<TensorTrain>(make_train(given, out, in));
  check_linear(Layout::f32, out, in, 0);
  Linear linear;
  linear.layout = Layout::f32, linear.out = out, linear.in = in, linear.train = train.get();
  linear.bias = array_or_none<const float>(bias, "bias", {out}).data;
  new (to) BoundLinear{linear, nb::none(), nb::none(), nb::none(), nb::none(), nb::none(), bias, nb::none()};
  to->train = std::move(train), to->sites = sites;
}

void make(BoundLinear* to, const std::string& name, nb::object codes, nb::object scales, nb::object minimums,
          nb::object zeros, nb::object table, nb::object overlay, nb::object bias, nb::object down, nb::object up,
          nb::object sites, int out, int in, int group, int activation_bits, float threshold) {
  if (!sites.is_none()) {
    for (const nb::object& other : {codes, scales, minimums, zeros, table, overlay, down, up})
      if (!other.is_none()) throw std::invalid_argument("a train of tensors has sites and a bias alone");
    return make_sites(to, name, sites, bias, out, in);
  }
  auto low = low_rank_of(down, up, out, in);
  make_with_overlay(to, name, codes, scales, minimums, zeros, table, overlay, bias, out, in, group, activation_bits,
                    threshold);
  to->low = std::move(low), to->linear.low = to->low.get(), to->down = down, to->up = up;
}

// The arrays that `rows` rows of a file's type become; T: const where they are read.
template <class T, class H>
LinearArrays arrays_of(const FileType& type, int64_t rows, int64_t columns, nb::handle codes, nb::handle scales,
                       nb::handle minimums) {
  const int64_t tiles = (rows + kLanes - 1) / kLanes;
  if (traits(type.layout).family == Family::pairs)
    return {(uint8_t*)array<H>(codes, "codes", {tiles, (columns + 1) / 2, kLanes, 2}).data, nullptr, nullptr};
  using S = std::conditional_t<std::is_const_v<T>, const Half, Half>;
  const bool two = two_levels(type.layout);
  const int64_t units = columns / type.columns,
                bytes = two ? record_bytes(type.layout) : thrifty::codes_of(type.layout, false).bytes();
  LinearArrays arrays{(uint8_t*)array<T>(codes, two ? "records" : "codes", {tiles, units, bytes}).data, nullptr,
                      nullptr};
  arrays.scales = (uint16_t*)array<S>(scales, "scales", {tiles, units, kLanes}).data;
  if (type.minimums) arrays.minimums = (uint16_t*)array<S>(minimums, "minimums", {tiles, units, kLanes}).data;
  else if (!minimums.is_none()) throw std::invalid_argument(std::string(type.name) + " has no minimums: give None");
  return arrays;
}

// Rows of the file; raw: uint8 [rows, row bytes].
FileRows rows_of(const FileType& type, const ArrayView<void>& raw) {
  if (raw.shape[1] % type.bytes || raw.shape[1] == 0)
    throw std::invalid_argument("rows of " + std::to_string(raw.shape[1]) + " bytes are not whole blocks of " +
                                type.name + ", of " + std::to_string(type.bytes) + " bytes each");
  return {(uint8_t*)raw.data, (size_t)raw.stride, (int)raw.shape[0], (int)(raw.shape[1] / type.bytes * type.columns)};
}

void run_repack(const std::string& name, nb::handle raw, nb::handle codes, nb::handle scales, nb::handle minimums) {
  const FileType& type = file_type(name);
  const auto given = array<const uint8_t>(raw, "raw", {kAny, kAny}, true);
  const FileRows rows = rows_of(type, {(void*)given.data, given.stride, {given.shape[0], given.shape[1]}});
  const LinearArrays arrays = arrays_of<uint8_t, uint16_t>(type, rows.rows, rows.columns, codes, scales, minimums);
  nb::gil_scoped_release released;
  repack(type, rows, arrays);
}

void run_unpack(const std::string& name, nb::handle codes, nb::handle scales, nb::handle minimums, nb::handle raw) {
  const FileType& type = file_type(name);
  const auto given = array<uint8_t>(raw, "raw", {kAny, kAny}, true);
  const FileRows rows = rows_of(type, {given.data, given.stride, {given.shape[0], given.shape[1]}});
  const LinearArrays arrays =
      arrays_of<const uint8_t, const uint16_t>(type, rows.rows, rows.columns, codes, scales, minimums);
  nb::gil_scoped_release released;
  unpack(type, arrays, rows);
}

void run_linear_rows(const BoundLinear& weight, nb::handle rows, nb::handle out) {
  const auto from = array<const int64_t>(rows, "rows", {kAny});
  const auto to = array<float>(out, "out", {from.shape[0], weight.linear.in});
  for (int64_t i = 0; i < from.shape[0]; i++)
    if (from.data[i] < 0 || from.data[i] >= weight.linear.out)
      throw std::invalid_argument("row " + std::to_string(from.data[i]) + " is outside 0.." +
                                  std::to_string(weight.linear.out - 1));
  nb::gil_scoped_release released;
  for (int64_t i = 0; i < from.shape[0]; i++)
    linear_row(weight.linear, (int)from.data[i], to.data + i * weight.linear.in);
}

}  // namespace

void bind_linear(nb::module_& m) {
  nb::class_<BoundLinear>(
      m, "Linear",
      "A stored linear layer; keeps its arrays. layout: int2, int3, int4, int5, int8, iq4_nl, ternary, binary (codes "
      "uint8 "
      "[tiles, blocks, bytes]; scales and minimums float16 [tiles, groups, 16]), "
      "q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs (codes: records uint8 [tiles, superblocks, bytes]; "
      "scales, minimums float16 [tiles, superblocks, 16]), "
      "bf16 (codes uint16, packed in pairs), f16 or f32 (codes: plain rows), table4 or table8 "
      "(codes uint8 into a table float32 [16 or 256], scales float32), row_table3 or row_table4 "
      "(codes into a table uint8, int8 in truth, [tiles, 16, 8 or 16]; scales float16 [tiles, "
      "16]), vectors4 or vectors8 (codes of vectors; table: main and rest float16 [books, entries, "
      "length] and books uint8 [in]; scales and minimums float16 [in]). "
      "planes1 to planes8 (codes: a plane of 64 bytes a bit; scales float16) multiply activations rounded to "
      "activation_bits, 1 to 8. int2, int3, int4 and int8 may have zeros uint8 [tiles, groups, 16] in place of "
      "minimums. overlay: starts "
      "int32 [out + 1], columns uint16 and values float16 of single weights on top, or None. paired_first and "
      "paired_second: codes uint16 as of "
      "bf16, words that both share. int4_token and int8_token (codes, scales) take activations with one scale a row; "
      "int8_token leaves features of at least `threshold` (0: none) apart, in fp32. down [rank, in], up [out, rank]: "
      "Linears whose product is added. int8_2_4, int4_2_4 and bf16_2_4 hold two of every four columns (codes uint8 "
      "[tiles, blocks, bytes], scales but for bf16). sites (codes None, layout f32): a list of (Linear, rows, "
      "columns), tensors whose train is the weight.")
      .def("__init__", &make, nb::kw_only(), "layout"_a, "codes"_a.none(), "scales"_a = nb::none(),
           "minimums"_a = nb::none(), "zeros"_a = nb::none(), "table"_a = nb::none(), "overlay"_a = nb::none(),
           "bias"_a = nb::none(), "down"_a = nb::none(), "up"_a = nb::none(), "sites"_a = nb::none(), "out_features"_a,
           "in_features"_a, "group"_a = 0, "activation_bits"_a = 0, "threshold"_a = 0.0f)
      .def_prop_ro("layout", [](const BoundLinear& b) { return std::string(name_of(b.linear.layout)); })
      .def_prop_ro("out_features", [](const BoundLinear& b) { return b.linear.out; })
      .def_prop_ro("in_features", [](const BoundLinear& b) { return b.linear.in; });
  nb::list names;
  for (const LayoutTraits& layout : kLayoutTraits) names.append(layout.name);
  m.attr("LINEAR_LAYOUTS") = nb::tuple(names);
  m.def("linear_rows", &run_linear_rows, "linear"_a, "rows"_a, "out"_a,
        "Rows int64 [n] of the weight, without the bias, into out float32 [n, in].");
  m.def("repack", &run_repack, "type"_a, "raw"_a, "codes"_a, "scales"_a.none(), "minimums"_a.none(),
        "Rows of a GGUF type (Q4_0, Q6_K, ...), raw uint8 [rows, bytes] at any distance, into the arrays of the linear "
        "that stores them: codes or records, scales and minimums (None: the type has none).");
  m.def("unpack", &run_unpack, "type"_a, "codes"_a, "scales"_a.none(), "minimums"_a.none(), "raw"_a,
        "The inverse of repack: the file's bytes into raw uint8 [rows, bytes].");
}

}  // namespace thrifty
