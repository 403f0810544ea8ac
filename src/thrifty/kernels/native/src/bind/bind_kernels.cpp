#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "bind/array.hpp"
#include "attention/attend.hpp"
#include "attention/attention_map_driver.hpp"
#include "bind/bind.hpp"
#include "bind/bind_linear.hpp"
#include "attention/compress_driver.hpp"
#include "attention/gather.hpp"
#include "isa/isa.hpp"
#include "linear/linear.hpp"
#include "measure.hpp"
#include "pool.hpp"
#include "attention/read_slab.hpp"
#include "attention/slab.hpp"
#include "attention/view.hpp"
#include "attention/witness.hpp"

namespace thrifty {

using namespace nb::literals;

namespace {

nb::dict features() {
  nb::dict d;
  for (const auto& [name, present] : cpu_features()) d[name.c_str()] = present;
  return d;
}

void run_matmul(const BoundLinear& weight, nb::handle x, nb::handle y) {
  const auto from = array<const float>(x, "x", {kAny, weight.linear.in});
  const auto to = array<float>(y, "y", {from.shape[0], weight.linear.out});
  nb::gil_scoped_release released;
  if (from.shape[0]) matmul(weight.linear, from.data, to.data, (int)from.shape[0]);
}

void run_attend(View& view, int layer, nb::handle query, nb::handle out, float scale, int window, float softcap,
                nb::handle accumulate, bool decodes) {
  const auto q = array<const float>(query, "query", {kAny, kAny, view.head_dim(layer)});
  const auto to = array<float>(out, "out", {q.shape[0], q.shape[1], q.shape[2]});
  const int rows = (int)q.shape[0], heads = (int)q.shape[1];
  Attention::check(view, layer, rows, heads, window);
  int slots = 0;
  for (int h = 0; h < view.kv_heads(layer); h++) slots = std::max(slots, view.tokens(layer, h));
  const auto sums = array_or_none<float>(accumulate, "accumulate", {heads, slots});
  View::Busy busy(view);
  nb::gil_scoped_release released;
  std::vector<View*> views{&view};
  const auto streams = Streams::wanted(views) ? std::make_unique<Streams>(views, std::vector<int>{layer}) : nullptr;
  Attention attention;
  AttentionBuffers buffers;
  attention.begin(streams.get(), streams ? streams->stages(layer) : nullptr);
  Attention::Call call{heads, scale, softcap, window, sums.data, slots};
  call.decodes = decodes;
  attention.add(view, layer, call, rows, q.data, to.data);
  attention.prepare(buffers, Pool::shared().threads());
  Pool::shared().run(Attention::scratch_bytes(view.head_dim(layer), heads / view.kv_heads(layer)),
                     [&](Worker& w) { attention.run(w); });
  if (attention.failed()) throw std::runtime_error(streams->error());
}

void run_witness(View& view, int layer, nb::handle query, const std::vector<std::tuple<int, int, int>>& judged,
                 nb::handle table, int forced, float scale, float softcap, bool mean) {
  const auto q = array<const float>(query, "query", {kAny, kAny, view.head_dim(layer)});
  const auto to = array<float>(table, "table", {view.kv_heads(layer), kAny});
  std::vector<Judged> all;
  for (const auto& [sinks, low, high] : judged) all.push_back({sinks, low, high});
  nb::gil_scoped_release released;
  witness(view, layer, {(int)q.shape[0], (int)q.shape[1], forced, scale, softcap, mean}, all, q.data, to.data,
          (int)to.shape[1]);
}

void run_attention_map(nb::handle queries, nb::handle keys, nb::handle sees, nb::handle out, float scale, float softcap,
                       nb::handle bias) {
  const auto q = array<const float>(queries, "queries", {kAny, kAny});
  const auto k = array<const float>(keys, "keys", {kAny, q.shape[1]});
  const auto counts = array<const int64_t>(sees, "sees", {q.shape[0]});
  const auto extra = array_or_none<const float>(bias, "bias", {k.shape[0]});
  const auto to = array<float>(out, "out", {q.shape[0], k.shape[0]});
  nb::gil_scoped_release released;
  attention_map(
      {q.data, k.data, counts.data, extra.data, (int)q.shape[0], (int)k.shape[0], (int)q.shape[1], scale, softcap},
      to.data);
}

bool aligned(const void* memory) { return (uintptr_t)memory % 64 == 0; }

struct Slabs {
  nb::object array;
  int format, capacity;
};

bool run_compress(const Slabs& source, const Slabs& target, int head_dim, int first_page, int tokens) {
  const auto from = array<const uint8_t>(source.array, "source", {kAny, kAny}, true);
  const auto to = array<uint8_t>(target.array, "target", {from.shape[0], kAny}, true);
  check_slab_bytes("a row of source", from.shape[1], source.format, source.capacity, head_dim);
  check_slab_bytes("a row of target", to.shape[1], target.format, target.capacity, head_dim);
  const bool rows_fit = aligned(from.data) && aligned(to.data) && from.stride % 64 == 0 && to.stride % 64 == 0;
  if (!rows_fit || tokens == 0 || from.shape[0] == 0) return false;
  const SlabRows before{(uintptr_t)from.data, (size_t)from.stride, known_format(source.format), source.capacity};
  const SlabRows after{(uintptr_t)to.data, (size_t)to.stride, known_format(target.format), target.capacity};
  nb::gil_scoped_release released;
  return compress(before, after, (int)from.shape[0], head_dim, first_page, tokens);
}

bool run_read_slab(nb::handle slab, nb::handle keys, nb::handle values, int format, int capacity, int start) {
  const auto from = array<const uint8_t>(slab, "slab", {kAny});
  const auto k = array<float>(keys, "keys", {kAny, kAny}), v = array<float>(values, "values", {k.shape[0], k.shape[1]});
  check_slab_bytes("slab", from.shape[0], format, capacity, (int)k.shape[1]);
  if (!aligned(from.data)) return false;
  const Format known = known_format(format);
  nb::gil_scoped_release released;
  read_slab(from.data, known, capacity, (int)k.shape[1], start, (int)k.shape[0], k.data, v.data);
  return true;
}

using ChosenSlots = std::tuple<nb::object, int, nb::object>;                 // slab, its capacity, slots int64
using GatheredHead = std::tuple<nb::object, int, std::vector<ChosenSlots>>;  // target, its capacity, what it is made of

bool run_gather(const std::vector<GatheredHead>& heads, int format, int head_dim) {
  std::vector<Gathering> all;
  bool fit = true;
  for (const auto& [target, room, parts] : heads) {
    const auto to = array<uint8_t>(target, "target", {kAny});
    check_slab_bytes("target", to.shape[0], format, room, head_dim);
    fit = fit && aligned(to.data);
    Gathering& head = all.emplace_back(Gathering{(uintptr_t)to.data, room, {}});
    for (const auto& [slab, capacity, slots] : parts) {
      const auto from = array<const uint8_t>(slab, "slab", {kAny});
      check_slab_bytes("slab", from.shape[0], format, capacity, head_dim);
      fit = fit && aligned(from.data);
      const auto places = array<const int64_t>(slots, "slots", {kAny});
      head.parts.push_back({(uintptr_t)from.data, capacity, (uintptr_t)places.data, (int)places.shape[0]});
    }
  }
  if (!fit) return false;
  const Format known = known_format(format);
  nb::gil_scoped_release released;
  gather(all, known, head_dim);
  return true;
}

void bind_machine(nb::module_& m) {
  m.def("cpu_features", &features, "Name of each instruction set extension that matters here -> present.");
  m.def("isa", [] { return std::string(kernels().name); }, "Instruction set in use: avx512, avx2 or portable.");
  m.def("force_isa", &force_isa, "name"_a,
        "Use this instruction set from now on ('auto': the best one). Not while a step runs.");
  m.def("isa_available", &isa_available, "name"_a);
  m.def(
      "set_threads", [](int n) { Pool::shared().resize(n); }, "n"_a, nb::call_guard<nb::gil_scoped_release>(),
      "Workers of the pool, the caller among them; at most available_threads().");
  m.def("threads", [] { return Pool::shared().threads(); });
  m.def(
      "threads_taking_part", [] { return Pool::shared().taking_part(); }, nb::call_guard<nb::gil_scoped_release>(),
      "Workers of the latest run: fewer than threads() while other processes take their processors.");
  m.def("available_threads", [] { return Pool::available(); });
  m.def("read_bandwidth", &read_bandwidth, "megabytes"_a = 512, "repeats"_a = 5,
        nb::call_guard<nb::gil_scoped_release>(), "GB/s read by all workers, best of `repeats`.");
  m.def("gemm_rate", &gemm_rate, "repeats"_a = 5, nb::call_guard<nb::gil_scoped_release>(),
        "1e9 operations a second of an int4 x int8 product (256 x 1024 x 1024), best of `repeats`.");
}

}  // namespace

void bind_kernels(nb::module_& m) {
  bind_machine(m);
  bind_linear(m);
  m.def("matmul", &run_matmul, "linear"_a, "x"_a, "y"_a,
        "x float32 [rows, in] times the weight, transposed, plus the bias, into y float32 [rows, out].");
  m.def("attend", &run_attend, "view"_a, "layer"_a, "query"_a, "out"_a, nb::kw_only(), "scale"_a, "window"_a = 0,
        "softcap"_a = 0.0f, "accumulate"_a = nb::none(), "decodes"_a = false,
        "query, out: float32 [rows, heads, head_dim]; accumulate: float32 [heads, slots of the longest KV head] or "
        "None. window, softcap 0: none. decodes: rows select pages where the view says so.");
  m.def("witness", &run_witness, "view"_a, "layer"_a, "query"_a, "judged"_a, "table"_a, nb::kw_only(), "forced"_a,
        "scale"_a, "softcap"_a = 0.0f, "mean"_a = false,
        "query: float32 [rows, heads, head_dim]; judged: (sinks, low, high) of each KV head; table: float32 [kv_heads, "
        "most judged slots or more].");
  m.def("attention_map", &run_attention_map, "queries"_a, "keys"_a, "sees"_a, "out"_a, nb::kw_only(), "scale"_a,
        "softcap"_a = 0.0f, "bias"_a = nb::none(),
        "queries float32 [rows, dim], keys float32 [slots, dim], sees int64 [rows], bias float32 [slots] or None, out "
        "float32 [rows, slots].");
  nb::class_<Slabs>(m, "Slabs",
                    "Slabs of one KV format, 64-byte aligned: array uint8 [count, bytes], whose rows may lie apart.")
      .def(nb::init<nb::object, int, int>(), "array"_a, "format"_a, "capacity"_a);
  nb::list names;
  for (const FormatTraits& format : kFormatTraits) names.append(format.name);
  m.attr("KV_FORMATS") = nb::tuple(names);
  m.def("compress", &run_compress, "source"_a, "target"_a, nb::kw_only(), "head_dim"_a, "first_page"_a, "tokens"_a,
        "Slabs of full precision, from a page on, to slabs of codes. False where codes cannot hold them, or the slabs "
        "are not aligned.");
  m.def("read_slab", &run_read_slab, "slab"_a, "keys"_a, "values"_a, nb::kw_only(), "format"_a, "capacity"_a, "start"_a,
        "Tokens from `start` on of a slab uint8 [bytes] into keys, values float32 [tokens, head_dim]. False, with "
        "nothing done, where the slab is not aligned.");
  m.def("gather", &run_gather, "heads"_a, "format"_a, "head_dim"_a,
        "heads: (target, capacity, [(slab, capacity, slots)]): uint8 [bytes], int64 [n]. False, with nothing done, "
        "where a slab is not aligned.");
}

}  // namespace thrifty
