#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind/array.hpp"
#include "bind/bind.hpp"
#include "attention/slab.hpp"
#include "attention/view.hpp"

namespace thrifty {

using namespace nb::literals;

namespace {

uintptr_t bias_address(nb::handle bias, int tokens) {
  const auto found = array_or_none<const float>(bias, "bias", {kAny});
  if (found && found.shape[0] < tokens)
    throw std::invalid_argument("bias has " + std::to_string(found.shape[0]) + " numbers for " +
                                std::to_string(tokens) + " tokens");
  return (uintptr_t)found.data;
}

void push(View& view, int layer, int head, nb::handle slab, int tokens, int capacity, int format, nb::handle bias,
          bool sealed) {
  const auto memory = array<const uint8_t>(slab, "slab", {kAny});
  check_slab_bytes("slab", memory.shape[0], format, capacity, view.head_dim(layer));
  view.push(layer, head, (uintptr_t)memory.data, tokens, capacity, format, bias_address(bias, tokens), sealed);
}

void exchange(View& view, int layer, int head, int index, nb::handle slab, int capacity, int format, nb::handle bias) {
  const auto memory = array<const uint8_t>(slab, "slab", {kAny});
  check_slab_bytes("slab", memory.shape[0], format, capacity, view.head_dim(layer));
  const auto& spans = view.spans(layer, head);
  const int tokens = index >= 0 && (size_t)index < spans.size() ? spans[(size_t)index].tokens : 0;
  view.exchange(layer, head, index, (uintptr_t)memory.data, capacity, format, bias_address(bias, tokens));
}

// One span for each of some heads.
void push_heads(View& view, int layer, const std::vector<int>& heads, nb::handle slabs, int tokens, int capacity,
                int format, nb::handle bias, bool sealed) {
  const int64_t count = (int64_t)heads.size();
  const auto memory = array<const uint8_t>(slabs, "slabs", {count, kAny}, true);
  check_slab_bytes("a row of slabs", memory.shape[1], format, capacity, view.head_dim(layer));
  const auto rows = array_or_none<const float>(bias, "bias", {count, kAny}, true);
  if (rows && rows.shape[1] < tokens)
    throw std::invalid_argument("bias has " + std::to_string(rows.shape[1]) + " numbers a head for " +
                                std::to_string(tokens) + " tokens");
  for (int head : heads) view.tokens(layer, head);  // throws before anything is changed
  for (int64_t i = 0; i < count; i++) {
    const float* const row = rows ? rows.data + i * rows.stride : nullptr;
    view.push(layer, heads[(size_t)i], (uintptr_t)(memory.data + i * memory.stride), tokens, capacity, format,
              (uintptr_t)row, sealed);
  }
}

// Two buffers of one recurrent state, and the rows that the second has and the first has not.
void set_state(View& view, int layer, nb::handle committed, nb::handle newest, int rows) {
  const auto first = array<float>(committed, "committed", {kAny});
  const auto second = array<float>(newest, "newest", {first.shape[0]});
  view.set_state(layer, {first.data, second.data, first.shape[0], rows});
}

// Reads [offset, bytes, least, place in the buffer] of one group of heads.
void stream(View& view, int layer, int first_head, int last_head, int descriptor, bool direct, int buffer,
            nb::handle memory, nb::handle reads) {
  const auto to = array<uint8_t>(memory, "memory", {kAny});
  const auto rows = array<const int64_t>(reads, "reads", {kAny, 4});
  StreamGroup group{first_head, last_head, descriptor, direct, buffer, {}};
  for (int64_t i = 0; i < rows.shape[0]; i++) {
    const int64_t* row = rows.data + i * 4;
    if (row[1] < 1 || row[3] < 0 || row[3] + row[1] > to.shape[0])
      throw std::invalid_argument("a read of " + std::to_string(row[1]) + " bytes does not fit its buffer");
    group.reads.push_back({row[0], row[1], row[2], to.data + row[3]});
  }
  view.stream(layer, std::move(group));
}

void append(View& view, int layer, nb::handle keys, nb::handle values) {
  const auto k = array<const float>(keys, "keys", {kAny, view.kv_heads(layer), view.head_dim(layer)});
  const auto v = array<const float>(values, "values", {k.shape[0], view.kv_heads(layer), view.head_dim(layer)});
  std::vector<int> start;
  for (int h = 0; h < view.kv_heads(layer); h++) start.push_back(view.tokens(layer, h));
  view.reserve(layer, (int)k.shape[0]);
  nb::gil_scoped_release released;
  const size_t dim = (size_t)view.head_dim(layer), heads = (size_t)view.kv_heads(layer);
  for (size_t i = 0; i < (size_t)k.shape[0]; i++)
    for (size_t h = 0; h < heads; h++)
      view.write(layer, (int)h, start[h] + (int)i, k.data + (i * heads + h) * dim, v.data + (i * heads + h) * dim);
}

}  // namespace

void bind_view(nb::module_& m) {
  nb::class_<View>(m, "View",
                   "Spans that one sequence attends to, by layer and KV head. Holds addresses only: the caller keeps "
                   "the memory, where it lies.")
      .def(nb::init<int, int, int>(), "layers"_a, "kv_heads"_a, "head_dim"_a)
      .def(nb::init<std::vector<int>, std::vector<int>>(), "kv_heads"_a, "head_dims"_a, "Of each layer.")
      .def("push", &push, "layer"_a, "head"_a, "slab"_a, "tokens"_a, "capacity"_a, "format"_a, "bias"_a = nb::none(),
           "sealed"_a = false, "A span: slab uint8 [bytes], 64-byte aligned; bias: float32 of each token, or None.")
      .def("push_heads", &push_heads, "layer"_a, "heads"_a, "slabs"_a, "tokens"_a, "capacity"_a, "format"_a,
           "bias"_a = nb::none(), "sealed"_a = false,
           "A span for each of `heads`: slabs uint8 [heads, bytes], bias float32 [heads, tokens or more] or None; "
           "their rows may lie apart.")
      .def("exchange", &exchange, "layer"_a, "head"_a, "index"_a, "slab"_a, "capacity"_a, "format"_a,
           "bias"_a = nb::none(), "Other memory for the tokens of a span that is sealed or full.")
      .def("clear", &View::clear, "layer"_a, "head"_a = -1)
      .def("truncate", &View::truncate, "layer"_a, "tokens_dropped"_a)
      .def("drop_front", &View::drop_front, "layer"_a, "head"_a, "spans"_a)
      .def("tokens", &View::tokens, "layer"_a, "head"_a = 0)
      .def("room", &View::room, "layer"_a)
      .def("append", &append, "layer"_a, "keys"_a, "values"_a,
           "keys, values: float32 [rows, kv_heads, head_dim], behind the last slots.")
      .def("select_pages", &View::select_pages, "layer"_a, "page"_a, "budget"_a,
           "Rows that decode attend in a layer to `budget` pages of `page` slots, their own among them.")
      .def("hold_bounds", &View::hold_bounds, "blocks"_a, "Room for the bounds of so many blocks of 64 slots a head.")
      .def_prop_ro("most_blocks", &View::most_blocks, "Of a head that selects, with those that are still to be filled.")
      .def("stream", &stream, "layer"_a, "first_head"_a, "last_head"_a, "descriptor"_a, "direct"_a, "buffer"_a,
           "memory"_a, "reads"_a,
           "Slots of these heads, which were pushed with addresses in `memory` uint8 [bytes], lie in a file: reads "
           "int64 "
           "[n, 4], each an offset, its bytes, how many of them must come, and the place in `memory`. Groups with the "
           "same number of a buffer share it.")
      .def_prop_ro("bytes_read", &View::bytes_read, "From files, in all steps so far.")
      .def("set_state", &set_state, "layer"_a, "committed"_a, "newest"_a, "rows"_a = 0,
           "A layer with a recurrent state, in two buffers float32 [numbers]; rows: what `newest` has seen more.")
      .def("commit_states", &View::commit_states, "layer"_a = -1, "What the newest rows made of a state stays.")
      .def_prop_ro("layers", &View::layers)
      .def("kv_heads", &View::kv_heads, "layer"_a)
      .def("head_dim", &View::head_dim, "layer"_a);
}

}  // namespace thrifty
